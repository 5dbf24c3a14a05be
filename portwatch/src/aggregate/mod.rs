//! Keeps the output quiet: what a socket turns out to be in one line, connections by peer, and bursts
//! as a beginning and sums. Nothing is dropped uncounted.

mod bursts;
mod peers;
mod settings;

pub use self::settings::Settings;

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use self::{bursts::Bursts, peers::Peers};
use crate::{
    alert::Alert,
    model::{EventKind, Printable, Transport},
    util::Bounded,
};

/// Outgoing sockets whose close is not told, because nothing but their connect was.
const CLIENTS: usize = 4096;

/// Binds that wait; past that the oldest is told.
const HELD: usize = 1024;

/// Stands between the tracker and the output.
pub struct Aggregator {
    quiet: Settings,
    /// TCP binds that wait for what the socket turns out to be, by cookie.
    held: HashMap<u64, Alert>,
    /// In which order, and until when.
    deadlines: VecDeque<(Instant, u64)>,
    clients: Bounded<u64, ()>,
    peers: Peers,
    bursts: Bursts,
}

impl Aggregator {
    /// Nothing has happened yet on the host of that name.
    #[must_use]
    pub fn new(quiet: Settings, host: Printable) -> Self {
        Self {
            quiet,
            held: HashMap::new(),
            deadlines: VecDeque::new(),
            clients: Bounded::new(CLIENTS),
            peers: Peers::default(),
            bursts: Bursts::new(host),
        }
    }

    /// Other numbers from now on.
    pub const fn set_quiet(&mut self, quiet: Settings) {
        self.quiet = quiet;
    }

    /// Takes an alert, and adds those that are to be told now.
    pub fn pass(&mut self, mut alert: Alert, now: Instant, told: &mut Vec<Alert>) {
        if !self.quiet.enabled || alert.port.is_none() {
            told.push(alert);
            return;
        }
        let cookie = alert.socket.cookie;
        if let Some(cookie) = cookie {
            let bind = self.held.remove(&cookie);
            match alert.event {
                EventKind::Bind if self.is_to_wait(&alert) => {
                    self.hold(cookie, alert, now, told);
                    return;
                }
                EventKind::Connect if bind.is_some() || alert.since == Some(alert.time) => {
                    self.clients.put(cookie, ());
                }
                // Its only line was the connect.
                EventKind::Close if self.clients.pop(&cookie).is_some() => {
                    self.bursts.left(&alert);
                    return;
                }
                _ => {
                    if let Some(bind) = bind {
                        self.bursts.pass(bind, &self.quiet, now, told);
                    }
                }
            }
        }
        if self.peers.count(&mut alert) {
            self.bursts.pass(alert, &self.quiet, now, told);
        }
    }

    /// Takes what the kernel side counted as `times` such alerts.
    pub fn repeat(&mut self, alert: Alert, times: u64, now: Instant) {
        if !self.peers.repeat(&alert, times) {
            self.bursts.repeat(alert, times, &self.quiet, now);
        }
    }

    /// A TCP bind can be a server's or a client's: what comes next says which.
    fn is_to_wait(&self, alert: &Alert) -> bool {
        alert.transport == Some(Transport::Tcp)
            && alert.origin == crate::alert::Origin::Live
            && !self.quiet.bind_delay.is_zero()
    }

    fn hold(&mut self, cookie: u64, alert: Alert, now: Instant, told: &mut Vec<Alert>) {
        self.held.insert(cookie, alert);
        self.deadlines
            .push_back((now + self.quiet.bind_delay, cookie));
        while self.held.len() > HELD
            && let Some((_, oldest)) = self.deadlines.pop_front()
        {
            self.release(oldest, now, told);
        }
    }

    fn release(&mut self, cookie: u64, now: Instant, told: &mut Vec<Alert>) {
        if let Some(bind) = self.held.remove(&cookie) {
            self.bursts.pass(bind, &self.quiet, now, told);
        }
    }

    /// When [`flush`](Self::flush) has something to do; None when nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let held = self.deadlines.front().map(|(deadline, _)| *deadline);
        [held, self.bursts.due()].into_iter().flatten().min()
    }

    /// Adds what has waited long enough.
    pub fn flush(&mut self, now: Instant, told: &mut Vec<Alert>) {
        while let Some((deadline, cookie)) = self.deadlines.front().copied()
            && deadline <= now
        {
            self.deadlines.pop_front();
            self.release(cookie, now, told);
        }
        self.bursts.flush(&self.quiet, now, told);
    }

    /// Adds all that waits: the end.
    pub fn finish(&mut self, now: Instant, told: &mut Vec<Alert>) {
        while let Some((_, cookie)) = self.deadlines.pop_front() {
            self.release(cookie, now, told);
        }
        self.bursts.finish(told);
    }
}

#[cfg(test)]
mod tests;
