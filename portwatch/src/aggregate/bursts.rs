//! Bursts: what one program does on many ports, or many do on one. The first few are told, then a sum
//! once per interval, and at the end what is still held.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
    time::Instant,
};

use jiff::Timestamp;

use crate::{
    aggregate::Settings,
    alert::{Alert, Origin, Summary},
    model::{EventKind, Printable, Severity, Transport},
    process::Process,
};

/// Who or where: two alerts of a group can be one burst.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Group {
    /// A program run by a user; which process of it does not matter.
    Program(Printable, u32),
    Port(Place),
}

/// Where it happened.
type Place = (Transport, u16);

/// Where an alert's socket is; None for one that is about no socket.
fn place_of(alert: &Alert) -> Option<Place> {
    Some((alert.transport?, alert.port?))
}

impl Group {
    fn all_of(alert: &Alert, place: Place) -> [Option<Self>; 2] {
        [Self::of_program(alert), Some(Self::Port(place))]
    }

    fn of_program(alert: &Alert) -> Option<Self> {
        let process = alert.process.as_deref()?;
        let name = process.exe.as_ref().unwrap_or(&process.comm);
        Some(Self::Program(name.clone(), process.uid))
    }
}

struct Burst {
    /// Alerts that were told one by one.
    told: u32,
    loudest: Option<Severity>,
    last: Instant,
    /// What was not told since the last sum.
    sum: Option<Sum>,
    /// How many sockets it has on a port.
    held: BTreeMap<Place, u32>,
}

struct Sum {
    began: Instant,
    since: Timestamp,
    severity: Severity,
    counts: BTreeMap<&'static str, u64>,
    places: BTreeSet<Place>,
    /// The last one that acted.
    process: Option<Rc<Process>>,
    last: Alert,
}

/// Groups that are kept; past that, those that are over are looked for, and new ones are told in full.
const GROUPS: usize = 4096;

pub(super) struct Bursts {
    host: Printable,
    groups: HashMap<Group, Burst>,
    due: Option<Instant>,
}

impl Bursts {
    pub(super) fn new(host: Printable) -> Self {
        Self {
            host,
            groups: HashMap::new(),
            due: None,
        }
    }

    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Tells the alert, or counts it.
    pub(super) fn pass(
        &mut self,
        alert: Alert,
        quiet: &Settings,
        now: Instant,
        told: &mut Vec<Alert>,
    ) {
        let Some(place) = place_of(&alert) else {
            told.push(alert);
            return;
        };
        let groups = Group::all_of(&alert, place);
        self.stir(&groups, now);
        for group in groups.iter().flatten() {
            if let Some(burst) = self.groups.get_mut(group) {
                burst.note(&alert, place);
            }
        }
        let is_over = |group: &&Group| {
            self.groups.get(*group).is_some_and(|burst| {
                // What was there already is told, unless it is part of a burst.
                let burst_is_on = burst.sum.is_some() || alert.origin == Origin::Live;
                burst.told >= quiet.burst && burst_is_on && burst.loudest >= Some(alert.severity)
            })
        };
        let over = groups.iter().flatten().find(is_over).cloned();
        match over.and_then(|group| self.groups.get_mut(&group)) {
            Some(burst) => {
                burst.add(alert, 1, now);
                let next = burst.next(quiet);
                self.look_at(next);
            }
            None => {
                for group in groups.iter().flatten() {
                    if let Some(burst) = self.groups.get_mut(group) {
                        burst.told += 1;
                        burst.loudest = burst.loudest.max(Some(alert.severity));
                    }
                }
                told.push(alert);
                // A group that is over gives its place back, some time.
                self.due = self.due.or(Some(now + quiet.idle_timeout));
            }
        }
    }

    /// Counts what was not told one by one even to this. Which of it is still held, a snapshot will
    /// say.
    pub(super) fn repeat(&mut self, alert: Alert, times: u64, quiet: &Settings, now: Instant) {
        let Some(place) = place_of(&alert) else {
            return;
        };
        let groups = Group::all_of(&alert, place);
        self.stir(&groups, now);
        let known = groups.into_iter().flatten();
        let mut known = known.filter(|group| self.groups.contains_key(group));
        // Of ports there are only so many.
        let group = known.next().unwrap_or(Group::Port(place));
        let burst = self.groups.entry(group);
        let burst = burst.or_insert_with(|| Burst::new(now));
        burst.add(alert, times, now);
        let next = burst.next(quiet);
        self.look_at(next);
    }

    fn look_at(&mut self, next: Instant) {
        self.due = Some(self.due.map_or(next, |due| due.min(next)));
    }

    /// Notes a close that nobody is told of.
    pub(super) fn left(&mut self, alert: &Alert) {
        let Some(place) = place_of(alert) else {
            return;
        };
        for group in Group::all_of(alert, place).iter().flatten() {
            if let Some(burst) = self.groups.get_mut(group) {
                burst.leave(place);
            }
        }
    }

    /// Notes that something happens in these groups.
    fn stir(&mut self, groups: &[Option<Group>], now: Instant) {
        for group in groups.iter().flatten() {
            if !self.groups.contains_key(group) && self.groups.len() >= GROUPS {
                continue;
            }
            let burst = self.groups.entry(group.clone());
            burst.or_insert_with(|| Burst::new(now)).last = now;
        }
    }

    /// Adds the sums that are due, and forgets what is over.
    pub(super) fn flush(&mut self, quiet: &Settings, now: Instant, told: &mut Vec<Alert>) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let host = &self.host;
        self.groups.retain(|group, burst| {
            let is_over = burst.last + quiet.idle_timeout <= now;
            if burst.sum.is_some() && (is_over || burst.next(quiet) <= now) {
                told.extend(burst.sum_up(group, host));
            }
            !is_over
        });
        let next = self.groups.values().map(|burst| burst.next(quiet));
        self.due = next.min();
    }

    /// Adds every sum.
    pub(super) fn finish(&mut self, told: &mut Vec<Alert>) {
        for (group, burst) in &mut self.groups {
            told.extend(burst.sum_up(group, &self.host));
        }
    }
}

impl Burst {
    const fn new(now: Instant) -> Self {
        Self {
            told: 0,
            loudest: None,
            last: now,
            sum: None,
            held: BTreeMap::new(),
        }
    }

    /// Notes what is held after that.
    fn note(&mut self, alert: &Alert, place: Place) {
        // A listen comes after its bind, except where there was none.
        let is_first = alert.since == Some(alert.time) || alert.origin == Origin::Snapshot;
        match alert.event {
            EventKind::Bind => self.take(place),
            EventKind::Listen | EventKind::Connect if is_first => self.take(place),
            EventKind::Close => self.leave(place),
            _ => {}
        }
    }

    fn take(&mut self, place: Place) {
        *self.held.entry(place).or_default() += 1;
    }

    fn leave(&mut self, place: Place) {
        if let Some(count) = self.held.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&place);
            }
        }
    }

    fn add(&mut self, alert: Alert, times: u64, now: Instant) {
        let sum = self.sum.get_or_insert_with(|| Sum {
            began: now,
            since: alert.time,
            severity: alert.severity,
            counts: BTreeMap::new(),
            places: BTreeSet::new(),
            process: None,
            last: alert.clone(),
        });
        sum.severity = sum.severity.max(alert.severity);
        *sum.counts.entry(alert.event.name()).or_default() += times;
        sum.places.extend(place_of(&alert));
        if alert.process.is_some() {
            sum.process.clone_from(&alert.process);
        }
        sum.last = alert;
    }

    /// When it is to be looked at again.
    fn next(&self, quiet: &Settings) -> Instant {
        let over = self.last + quiet.idle_timeout;
        self.sum
            .as_ref()
            .map_or(over, |sum| over.min(sum.began + quiet.interval))
    }

    fn sum_up(&mut self, group: &Group, host: &Printable) -> Option<Alert> {
        let sum = self.sum.take()?;
        let (port, registry) = match sum.places.len() {
            1 => (sum.last.port, sum.last.registry),
            _ => (None, None),
        };
        let process = match group {
            Group::Program(..) => sum.process,
            // Of many programs, none stands for all.
            Group::Port(..) => None,
        };
        let summary = Summary {
            since: sum.since,
            counts: sum.counts,
            ports: ranges(&sum.places),
            held: ranges(self.held.keys()),
        };
        let severity = sum.severity;
        Some(Alert {
            port,
            transport: sum.last.transport.filter(|_| port.is_some()),
            registry,
            process,
            ..Alert::summary(summary, severity, host.clone())
        })
    }
}

/// By transport, `1-3,954-988`.
fn ranges<'a>(places: impl IntoIterator<Item = &'a Place>) -> BTreeMap<&'static str, String> {
    let mut runs: BTreeMap<&'static str, Vec<(u16, u16)>> = BTreeMap::new();
    for (transport, port) in places {
        let runs = runs.entry(transport.name()).or_default();
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *port => *last = *port,
            _ => runs.push((*port, *port)),
        }
    }
    let text = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.into_iter()
        .map(|(transport, runs)| {
            (
                transport,
                runs.iter().map(text).collect::<Vec<_>>().join(","),
            )
        })
        .collect()
}
