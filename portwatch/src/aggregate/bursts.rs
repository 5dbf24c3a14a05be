//! Bursts: what one program does on many ports, or many do on one. The first events are reported,
//! the rest is counted in summaries: the first soon, then ever more rarely.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Group, Output, Settings, summary::Sum};
use crate::{decide::Decided, model::Severity};

/// How long after the first counted event the first summary comes; each later one takes twice as
/// long, up to [`Settings::interval`].
const FIRST_SUMMARY: Duration = Duration::from_millis(1900);

/// Groups that are kept; past that, new ones are reported in full.
const GROUPS: usize = 4096;

struct Burst {
    /// Events that were reported one by one.
    reported: u32,
    max_severity: Option<Severity>,
    last: Instant,
    /// What was counted since the last summary.
    sum: Option<Sum>,
    /// How many summaries there were.
    summaries: u32,
}

#[derive(Default)]
pub(super) struct Bursts {
    groups: HashMap<Group, Burst>,
    due: Option<Instant>,
}

impl Bursts {
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The group of the event whose first events were reported, so that this one is to be counted;
    /// None when it is to be reported. What is louder than all that was reported is never counted.
    pub(super) fn over(
        &mut self,
        decided: &Decided,
        settings: &Settings,
        now: Instant,
    ) -> Option<Group> {
        let groups = Group::all_of(&decided.event);
        self.touch(&groups, now);
        let is_over = |group: &Group| {
            self.groups.get(group).is_some_and(|burst| {
                burst.reported >= settings.burst && burst.max_severity >= Some(decided.severity)
            })
        };
        groups.into_iter().flatten().find(is_over)
    }

    /// Notes that the event is reported.
    pub(super) fn reported(&mut self, decided: &Decided, settings: &Settings, now: Instant) {
        for group in Group::all_of(&decided.event).iter().flatten() {
            if let Some(burst) = self.groups.get_mut(group) {
                burst.reported += 1;
                burst.max_severity = burst.max_severity.max(Some(decided.severity));
            }
        }
        // A group that is over is forgotten, some time.
        self.due = self.due.or(Some(now + settings.idle_timeout));
    }

    /// The sum that the event belongs to: that of `over`, or of one of its own groups.
    pub(super) fn sum(
        &mut self,
        over: Option<Group>,
        decided: &Decided,
        settings: &Settings,
        now: Instant,
    ) -> &mut Sum {
        let group = over.unwrap_or_else(|| {
            let groups = Group::all_of(&decided.event);
            let mut known = groups
                .into_iter()
                .flatten()
                .filter(|group| self.groups.contains_key(group));
            known.next().unwrap_or_else(|| {
                let netns = decided.event.netns;
                // Of ports there are only so many, but not of namespaces.
                let netns = netns.filter(|_| self.groups.len() < GROUPS);
                Group::Port(netns, decided.event.port_key)
            })
        });
        let burst = self
            .groups
            .entry(group.clone())
            .or_insert_with(|| Burst::new(now));
        if burst.sum.is_none() {
            let began = burst.next_after(now, settings);
            self.due = Some(self.due.map_or(began, |due| due.min(began)));
        }
        burst.last = now;
        burst
            .sum
            .get_or_insert_with(|| Sum::new(group, decided, now))
    }

    /// Counts what the BPF programs counted.
    pub(super) fn add_counted(
        &mut self,
        decided: &Decided,
        times: u64,
        settings: &Settings,
        now: Instant,
    ) {
        self.touch(&Group::all_of(&decided.event), now);
        self.sum(None, decided, settings, now).add(decided, times);
    }

    /// Notes that something happens in these groups.
    fn touch(&mut self, groups: &[Option<Group>], now: Instant) {
        for group in groups.iter().flatten() {
            if let Some(burst) = self.groups.get_mut(group) {
                burst.last = now;
            } else if self.groups.len() < GROUPS {
                self.groups.insert(group.clone(), Burst::new(now));
            }
        }
    }

    /// Adds the summaries that are due and that `admits` has room for, and forgets the groups whose
    /// burst is over.
    pub(super) fn flush(
        &mut self,
        settings: &Settings,
        now: Instant,
        out: &mut Vec<Output>,
        mut admits: impl FnMut() -> bool,
    ) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.groups.retain(|_, burst| {
            let is_over = burst.last + settings.idle_timeout <= now;
            if burst.sum.is_some() && (is_over || burst.next(settings) <= now) {
                if !admits() {
                    return true;
                }
                out.extend(burst.summarize());
            }
            !is_over
        });
        let next = self.groups.values().map(|burst| burst.next(settings));
        self.due = next.min();
    }

    /// Adds every summary.
    pub(super) fn finish(&mut self, out: &mut Vec<Output>) {
        for burst in self.groups.values_mut() {
            out.extend(burst.summarize());
        }
    }
}

impl Burst {
    const fn new(now: Instant) -> Self {
        Self {
            reported: 0,
            max_severity: None,
            last: now,
            sum: None,
            summaries: 0,
        }
    }

    /// When it is to be looked at again.
    fn next(&self, settings: &Settings) -> Instant {
        let over = self.last + settings.idle_timeout;
        self.sum
            .as_ref()
            .map_or(over, |sum| over.min(self.next_after(sum.began, settings)))
    }

    /// When the summary of a sum is due that begins then.
    fn next_after(&self, began: Instant, settings: &Settings) -> Instant {
        let factor = 1_u32.checked_shl(self.summaries).unwrap_or(u32::MAX);
        began + FIRST_SUMMARY.saturating_mul(factor).min(settings.interval)
    }

    fn summarize(&mut self) -> Option<Output> {
        self.summaries += 1;
        Some(Output::Summary(self.sum.take()?.finish()))
    }
}
