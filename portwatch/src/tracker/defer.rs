//! Events that wait for a scan: it shows what a close or an accept of an unknown socket is about,
//! and who holds a socket where the kernel hides who acted.

use std::collections::HashSet;

use super::{Host, TrackedEvent, Tracker};
use crate::model::{CloseKind, Event, EventKind, PortKey, SocketKey};

/// Events and keys that are kept while a scan is running.
const LIMIT: usize = 65_536;

/// Events that wait to be attributed; further ones are reported without a process. Each event is
/// compared with all that wait.
const UNATTRIBUTED: usize = 1024;

/// Those of one network namespace: in its own, a user can listen without a bind as often as it likes.
const UNATTRIBUTED_EACH: usize = 256;

/// What waits for a scan.
#[derive(Default)]
pub(super) struct Deferred {
    /// None while no scan is running.
    pub(super) running: Option<Running>,
    /// Events of sockets whose owner the kernel did not say, in order, with the number of scans that
    /// had begun.
    pub(super) unattributed: Vec<(u64, Event)>,
}

/// What happens while a scan is running.
#[derive(Default)]
pub(super) struct Running {
    /// Closes and accepts of sockets that are not tracked.
    pub(super) events: Vec<Event>,
    /// Closed since the scan began: whatever it shows, they are gone.
    pub(super) closed: HashSet<SocketKey>,
    /// Whether more happened than is kept or observed.
    pub(super) overrun: bool,
    /// Whether not all that happened before its end was observed.
    pub(super) behind: bool,
}

impl<H: Host> Tracker<H> {
    /// Notes that a scan begins. All events that happened before must have been observed.
    pub fn begin_scan(&mut self) {
        self.table.round += 1;
        self.deferred.running = Some(Running::default());
    }

    /// Notes that not every event is observed: unknown sockets that the running scan shows count only
    /// if the next one shows them too.
    pub fn overrun(&mut self) {
        if let Some(running) = &mut self.deferred.running {
            running.overrun = true;
        }
    }

    /// Whether a scan should begin at once: events wait for it.
    pub fn waits_for_scan(&self) -> bool {
        !self.deferred.unattributed.is_empty() || self.steered.waits_for_scan()
    }

    /// Keeps an event that a scan may explain; gives any other back.
    pub(super) fn defer(&mut self, event: Event, out: &mut Vec<TrackedEvent>) -> Option<Event> {
        let event = self.defer_steered(event, out)?;
        let event = self.defer_unattributed(event, out)?;
        let Some(running) = &mut self.deferred.running else {
            return Some(event);
        };
        let is_unknown = event.key.is_none_or(|key| !self.table.has(key));
        if event.kind == EventKind::Close
            && event.close != CloseKind::ShutDown
            && let Some(key) = event.key
        {
            running.overrun |= running.closed.len() >= LIMIT;
            if !running.overrun {
                running.closed.insert(key);
            }
        }
        let may_wait = matches!(event.kind, EventKind::Close | EventKind::Accept);
        if may_wait && is_unknown && running.events.len() < LIMIT {
            running.events.push(event);
            return None;
        }
        Some(event)
    }

    /// Notes that a scan is joined although events from before its end are still to be observed: of
    /// tracked sockets it shows nothing new.
    pub fn fall_behind(&mut self) {
        if let Some(running) = &mut self.deferred.running {
            running.overrun = true;
            running.behind = true;
        }
    }

    /// A listen or connect by nobody known waits, and what follows on the same socket with it; its
    /// close ends the wait.
    fn defer_unattributed(&mut self, event: Event, out: &mut Vec<TrackedEvent>) -> Option<Event> {
        let waiting = &self.deferred.unattributed;
        let is_behind = event.key.is_some() && waiting.iter().any(|(_, one)| one.key == event.key);
        if is_behind && event.kind == EventKind::Close {
            let key = event.key;
            self.report_unattributed(out, |one| one.key == key);
            return Some(event);
        }
        let is_unattributed = matches!(event.kind, EventKind::Listen | EventKind::Connect)
            && event.task.is_none()
            && event.binder.is_none()
            && event.key.is_some_and(|key| {
                let known = self.table.known(key);
                known.is_none_or(|socket| {
                    socket.process.is_none() && socket.is_kernel_socket != Some(true)
                })
            });
        let is_near = |one: &&(u64, Event)| one.1.netns_cookie == event.netns_cookie;
        let is_room = waiting.len() < UNATTRIBUTED
            && (waiting.len() < UNATTRIBUTED_EACH
                || waiting.iter().filter(is_near).count() < UNATTRIBUTED_EACH);
        if (is_behind || is_unattributed) && is_room {
            let round = self.table.round;
            self.deferred.unattributed.push((round, event));
            return None;
        }
        Some(event)
    }

    /// Adds those of the waiting events that `is_due` picks, by what is known now.
    fn report_unattributed(
        &mut self,
        out: &mut Vec<TrackedEvent>,
        is_due: impl Fn(&Event) -> bool,
    ) {
        let waiting = std::mem::take(&mut self.deferred.unattributed);
        let (due, rest): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(_, event)| is_due(event));
        self.deferred.unattributed = rest;
        for (_, event) in due {
            self.apply(&event, None, out);
        }
    }

    /// Drops what waits and is about such a port.
    pub(super) fn forget_deferred(&mut self, is_forgotten: impl Fn(PortKey) -> bool) {
        let Deferred {
            running,
            unattributed,
        } = &mut self.deferred;
        unattributed.retain(|(_, event)| !is_forgotten(event.port_key()));
        if let Some(running) = running {
            running
                .events
                .retain(|event| !is_forgotten(event.port_key()));
        }
    }

    /// Adds everything that waits: no scan will come.
    pub fn abandon_scan(&mut self, out: &mut Vec<TrackedEvent>) {
        self.report_unattributed(out, |_| true);
        self.abandon_steered(out);
        for event in self.deferred.running.take().unwrap_or_default().events {
            self.apply(&event, None, out);
        }
    }
}
