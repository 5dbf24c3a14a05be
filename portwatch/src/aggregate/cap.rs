//! The most alerts a second. What it holds back is reported as fast as it allows, or counted.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{Aggregator, Output};

/// For how many seconds' worth of alerts nothing is held back after a time without any.
const SAVINGS: u32 = 5;

/// Limits the alerts that are not `critical`.
#[derive(Debug, Default)]
pub(super) struct Cap {
    /// When all that was saved is there again; None before the first alert.
    full: Option<Instant>,
    /// How many were held back since that began; None while none is.
    held: Option<u64>,
}

/// A change that the operator is to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capped {
    /// Alerts are held back: more than so many a second.
    Began(u32),
    /// None is held back any more; so many were.
    Ended(u64),
}

impl Cap {
    /// Whether there is room for an alert now.
    pub(super) fn allows(&self, rate: u32, now: Instant) -> bool {
        self.next(rate).is_none_or(|next| next <= now)
    }

    /// When there is room for an alert; None at any time.
    pub(super) fn next(&self, rate: u32) -> Option<Instant> {
        let savings = Duration::from_secs(SAVINGS.into());
        self.full?.checked_sub(savings).filter(|_| rate > 0)
    }

    /// Whether there is room for an alert now; if so, it is taken.
    pub(super) fn take(&mut self, rate: u32, now: Instant) -> bool {
        let is_room = self.allows(rate, now);
        if is_room {
            self.spend(rate, now);
        }
        is_room
    }

    /// Notes an alert.
    pub(super) fn spend(&mut self, rate: u32, now: Instant) {
        if let Some(each) = Duration::from_secs(1).checked_div(rate) {
            // However many are critical, the others need not wait longer than this.
            let latest = now + 2 * Duration::from_secs(SAVINGS.into());
            self.full = Some((self.full.map_or(now, |full| full.max(now)) + each).min(latest));
        }
    }

    /// Notes that alerts are held back; whether that is new.
    pub(super) const fn begin(&mut self) -> bool {
        let is_new = self.held.is_none();
        if is_new {
            self.held = Some(0);
        }
        is_new
    }

    /// Counts one that comes late, or that is counted elsewhere instead of being reported.
    pub(super) fn count(&mut self) {
        self.held = self.held.map(|held| held + 1);
    }

    /// Whether alerts are being held back.
    pub(super) const fn is_on(&self) -> bool {
        self.held.is_some()
    }

    /// Notes that nothing is held back any more; how many were, if any.
    pub(super) const fn end(&mut self) -> Option<u64> {
        self.held.take()
    }
}

impl Aggregator {
    /// Whether there is room for one more alert, which is counted otherwise.
    pub fn admits(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        let is_room = self.take_room(now, out);
        if !is_room {
            self.cap.count();
        }
        is_room
    }

    /// Whether the cap leaves room for one more alert that is not `critical`; if so, it is taken. What
    /// waits comes first.
    pub(super) fn take_room(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        let waits = self.cap.is_on() && self.pending.is_due(now);
        let is_room = !waits && self.cap.take(self.settings.max_rate, now);
        if !is_room {
            self.hold_back(out);
        }
        is_room
    }

    /// Notes that alerts are held back, which is reported when it begins.
    pub(super) fn hold_back(&mut self, out: &mut Vec<Output>) {
        if self.cap.begin() {
            out.push(Output::Capped(Capped::Began(self.settings.max_rate)));
        }
    }
}
