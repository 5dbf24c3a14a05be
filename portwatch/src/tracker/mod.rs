//! The state machine: events and scans in, tracked events out. A tracked socket lasts from bind to
//! close; it lends its owner to the events that carry no process.
#![forbid(unsafe_code)]

mod crowd;
mod defer;
mod handover;
mod holders;
mod host;
mod receive;
mod reconcile;
mod sessions;
mod socket;
mod steered;
mod table;

use std::{collections::HashSet, rc::Rc};

use jiff::Timestamp;

#[cfg(test)]
pub(crate) use self::holders::Holders;
pub use self::{
    crowd::Crowded,
    holders::Holder,
    host::{Host, ThisHost},
    reconcile::has_cookies,
    socket::{LASTING, Stage, TrackedEvent, TrackedSocket},
};
use self::{defer::Deferred, holders::Found, sessions::Sessions, steered::Steered, table::Table};
use crate::{
    inventory::{Scope, Targets},
    model::{CloseKind, Event, EventKind, Origin, PortKey, SocketKey},
    process::Process,
};

/// The tracked sockets of this host.
pub struct Tracker<H> {
    host: H,
    table: Table,
    deferred: Deferred,
    steered: Steered,
    sessions: Sessions,
    /// Sockets that the last scan showed, that are not reported yet, and that may be gone by now.
    unsure_once: HashSet<SocketKey>,
}

impl<H: Host> Tracker<H> {
    /// No sockets yet.
    pub fn new(host: H) -> Self {
        Self {
            host,
            table: Table::default(),
            deferred: Deferred::default(),
            steered: Steered::default(),
            sessions: Sessions::default(),
            unsure_once: HashSet::new(),
        }
    }

    /// The machine that is asked.
    pub const fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// Adds the tracked event of `event`; none yet where a scan will show more.
    pub fn observe(&mut self, event: Event, out: &mut Vec<TrackedEvent>) {
        if event.session.is_some() {
            self.end_session(&event, out);
            return;
        }
        if let Some(event) = self.defer(event, out) {
            self.apply(&event, None, out);
        }
    }

    /// `found`: who has the socket open by a scan, where the kernel does not say who acted.
    fn apply(&mut self, event: &Event, found: Option<Found<'_>>, out: &mut Vec<TrackedEvent>) {
        // Whom a scan shows with the accepted socket need not have what is on the port.
        let is_found = found.is_some_and(|found| !found.holders.is_empty());
        let is_steered = event.accepted.is_some() && is_found;
        let key = event.key.or_else(|| {
            let listener = || self.untracked_listener(event);
            (!is_steered).then(listener).flatten()
        });
        if event.kind == EventKind::Close && self.is_closed_before(event) {
            return;
        }
        let known = key.and_then(|key| self.table.get(key));
        let is_known = known.is_some();
        // A scan saw it between the kernel's bind and the report of it.
        let is_reported = event.kind == EventKind::Bind
            && known.as_ref().is_some_and(|known| {
                known.origin == Origin::Snapshot && known.port_key == event.port_key()
            });
        let mut socket = self.update(event, known, is_reported);
        if let Some(found) = found.filter(|_| socket.process.is_none()) {
            socket.process = found.holders.first().cloned();
            socket.set_holders(found);
        }
        let mut is_first_remote = false;
        if matches!(event.kind, EventKind::Accept | EventKind::Receive) {
            let is_tracked = key.is_some_and(|key| self.table.known(key).is_some());
            let is_known = is_tracked || (key.is_some() && event.kind == EventKind::Accept);
            let listener = (!is_known).then(|| (socket.netns, event.port_key()));
            let reached = socket.reached || listener.is_some_and(|it| self.table.is_reached(it));
            is_first_remote = !reached && self.is_remote(event);
            if let Some(listener) = listener.filter(|_| is_first_remote) {
                self.table.reach(listener);
            }
            if let Some(key) = key {
                self.table.accepted(key, is_first_remote, event.time);
            }
        }
        if let Some(key) = key {
            self.note_for_sessions(key, &socket, event);
            match event.close {
                CloseKind::ShutDown => self.table.shut_down(key),
                CloseKind::Released | CloseKind::ReleasedLater => {
                    self.table.store(key, &socket, event.kind);
                }
            }
        }
        let netns = socket.netns;
        let is_crowded = |key| self.table.is_crowded(key, netns, event.port_key());
        let may_be = !is_known || event.kind != EventKind::Close;
        socket.is_crowded |= may_be && key.is_some_and(is_crowded);
        if !is_reported {
            out.push(TrackedEvent {
                is_first_remote,
                ..self.tracked_event(event, &socket, key, Origin::Live)
            });
        }
    }

    /// Whether a close is no news: it was reported, by a scan that no longer showed the socket
    /// or when the socket was shut down.
    fn is_closed_before(&mut self, event: &Event) -> bool {
        let Some(key) = event.key else {
            return false;
        };
        if self.table.has_closed(key) {
            return true;
        }
        let is_later = event.close == CloseKind::ReleasedLater;
        match self.table.known(key) {
            Some(socket) if socket.shut_down => {
                let socket = socket.clone();
                // It can listen again, with the report of that lost.
                if is_later {
                    self.table.store(key, &socket, EventKind::Close);
                }
                event.close != CloseKind::Released
            }
            // That it was shut down is what was lost.
            Some(_) => false,
            None => is_later,
        }
    }

    /// The tracked event for each of the events that the BPF programs counted as `event`.
    pub fn counted(&mut self, event: &Event) -> TrackedEvent {
        let known = event.key.and_then(|key| self.table.get(key));
        let socket = self.update(event, known, true);
        self.tracked_event(event, &socket, event.key, Origin::Live)
    }

    /// The event of `kind` at `time` again, by what is known of its socket now; and whether that
    /// has closed. Neither open nor closed: there were too many to track.
    pub fn current(
        &mut self,
        key: SocketKey,
        port_key: PortKey,
        kind: EventKind,
        (time, origin): (Timestamp, Origin),
    ) -> (TrackedEvent, bool) {
        let has_closed = self.table.has_closed(key);
        let known = self.table.get(key);
        let socket = known.unwrap_or_else(|| TrackedSocket::new(port_key));
        let event = socket.event(key, kind, time);
        let event = self.tracked_event(&event, &socket, Some(key), origin);
        (event, has_closed)
    }

    /// The open sockets.
    pub fn open(&self) -> impl Iterator<Item = &TrackedSocket> {
        self.table.open().map(|(_, socket)| socket)
    }

    fn tracked_event(
        &mut self,
        event: &Event,
        socket: &TrackedSocket,
        key: Option<SocketKey>,
        origin: Origin,
    ) -> TrackedEvent {
        let mut event = TrackedEvent::new(event, socket, key, origin, self.host.host_netns());
        // What is counted only names no more than a slim record has.
        if let Some(process) = event.process.as_mut().filter(|_| !socket.is_crowded) {
            *process = self.host.complete(process);
        }
        event
    }

    /// Sockets that were evicted since the last call, because there were too many.
    pub const fn take_evicted(&mut self) -> u64 {
        self.table.take_evicted()
    }

    /// The largest crowds of sockets that are counted only, each once until it has doubled.
    pub fn take_crowded(&mut self) -> Vec<Crowded> {
        self.table.take_crowded()
    }

    /// What the next scan need not read, and what it is to look for.
    pub fn targets(&self) -> Targets {
        let mut targets = self.table.targets();
        // Their events wait for the holders.
        for (_, event) in &self.deferred.unattributed {
            event.cookie().map(|cookie| targets.known.remove(&cookie));
        }
        targets
    }

    /// Whether a scan would show more: who holds a socket that was just taken.
    pub fn wants_scan(&self) -> bool {
        self.table.has_holders_pending()
    }

    /// Forgets the sockets on ports that are no longer watched: whether they close is not seen.
    pub fn forget_unwatched(&mut self, scope: &Scope) {
        self.table.forget(|port_key| !scope.watches(port_key));
        self.forget_deferred(|port_key| !scope.watches(port_key));
    }

    /// Whether there are sockets that a scan is to mark.
    pub fn has_to_mark(&self) -> bool {
        self.table.has_to_mark()
    }

    /// Whether there are sockets whose close is not reported.
    pub fn has_unmarked(&self) -> bool {
        self.table.has_unmarked()
    }

    /// The event's socket as it is from this event on.
    fn update(
        &mut self,
        event: &Event,
        known: Option<TrackedSocket>,
        is_reported: bool,
    ) -> TrackedSocket {
        let mut socket = known.unwrap_or_else(|| TrackedSocket::new(event.port_key()));
        let stage = Stage::after(event.kind);
        if let Some(stage) = stage {
            if !is_reported {
                socket.stage = stage;
                socket.shut_down = false;
            }
            // What a bind said stands: no other hook looks.
            socket.is_kernel_socket = socket.is_kernel_socket.or(event.is_kernel_socket);
            socket.address = event.address;
            // It had lost the other port by disconnecting.
            if socket.port_key != event.port_key() {
                socket.port_key = event.port_key();
                socket.origin = Origin::Live;
                socket.since = None;
            }
            socket.since = socket.since.or(match socket.origin {
                Origin::Live => Some(event.time),
                Origin::Snapshot => None,
            });
        }
        match event.binder {
            // Its own bind was counted; another socket's bind by the same process was reported.
            Some(pid) => {
                socket.process = socket.process.or_else(|| self.host.last_identified(pid));
            }
            None if stage.is_some() || event.kind == EventKind::Deny => {
                self.attribute(event, &mut socket);
            }
            None => {}
        }
        if let Some((cookie, inode)) = event.netns_cookie.zip(event.netns) {
            self.host.cache_netns(cookie, inode);
        }
        socket.netns = socket.netns.or(event.netns);
        let actor = event.task.as_ref().map(|task| task.tid);
        let tid = actor.or_else(|| socket.process.as_ref().map(|process| process.pid));
        if socket.netns.is_none() {
            socket.netns = match event.netns_cookie {
                Some(cookie) => self.host.netns(cookie, tid),
                None => actor.and_then(|tid| self.host.thread_netns(tid)),
            };
        }
        if let Some(interface) = event.interface {
            if socket.interface != interface || socket.device.is_none() {
                socket.device = (interface != 0)
                    .then(|| self.host.device(socket.netns, interface, tid))
                    .flatten();
                socket.interface = interface;
            }
            socket.v6only = event.v6only;
        }
        socket
    }

    /// Notes the process that acted: it has the socket open.
    fn attribute(&mut self, event: &Event, socket: &mut TrackedSocket) {
        if socket.is_kernel_socket == Some(true) {
            return;
        }
        let Some(task) = &event.task else {
            return;
        };
        let now = self.host.identify(task, event.time);
        let actor = more_complete(now, socket.process.take());
        if !socket.holders.iter().any(|holder| holder.pid == actor.pid) {
            socket.holders = socket.holders.with(Holder::from(&*actor));
        }
        socket.process = Some(actor);
    }

    /// The socket that an accept without a key is about: a listener that has no socket mark.
    fn untracked_listener(&mut self, event: &Event) -> Option<SocketKey> {
        let netns = event
            .netns_cookie
            .and_then(|cookie| self.host.netns(cookie, None));
        match event.accepted {
            Some(_) => {
                self.table
                    .unmarked_listener_at(event.port_key(), event.address, netns, event.time)
            }
            None => self.table.at(event.port_key(), event.address, netns),
        }
    }

    fn is_remote(&mut self, event: &Event) -> bool {
        // Whoever sends a datagram can choose its address.
        if event.kind == EventKind::Receive {
            return !event.is_from_host;
        }
        let mut is_own = |peer| Some(peer) == event.address || self.host.is_own_address(peer);
        event.peer.is_some_and(|peer| !is_own(peer.ip()))
    }
}

/// `now`, or what was known of the same process before when it is gone by now.
fn more_complete(now: Rc<Process>, before: Option<Rc<Process>>) -> Rc<Process> {
    match before {
        Some(before) if before.pid == now.pid && now.exe.is_none() => before,
        _ => now,
    }
}

#[cfg(test)]
pub(crate) mod tests;
