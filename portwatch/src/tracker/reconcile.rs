//! Joins a scan with what events have reported. The hooks are attached before the scan begins, so
//! what it misses has been reported or will be; the key says what is the same socket.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::{
    Host, Stage, TrackedEvent, TrackedSocket, Tracker, defer::Running, handover::Handover,
};
use crate::{
    inventory::{Coverage, FoundSocket},
    model::{Event, EventKind, Origin, SocketKey, Transport},
};

impl<H: Host> Tracker<H> {
    /// Whether a socket that the running scan shows is tracked already.
    pub fn knows(&self, event: &Event, netns: u64) -> bool {
        self.key_of(event, netns)
            .is_some_and(|key| self.table.has(key))
    }

    /// Whether this socket, which is older than the BPF programs, should be marked. That takes a
    /// duplicate of its descriptor, which keeps its port in use for a moment: so only what an
    /// earlier scan showed too, and once.
    pub fn is_to_mark(&mut self, event: &Event, netns: u64) -> bool {
        let key = self.key_of(event, netns);
        key.is_some_and(|key| self.table.try_to_mark(key))
    }

    /// Whether it is tracked, and the BPF programs report its close.
    pub fn is_marked(&self, event: &Event, netns: u64) -> bool {
        let key = self.key_of(event, netns);
        let known = key.and_then(|key| self.table.known(key));
        known.is_some_and(|socket| socket.marked)
    }

    /// The key of a socket that a scan shows: SCTP's and DCCP's events have another than its cookie,
    /// and without sock_diag there is no cookie.
    fn key_of(&self, event: &Event, netns: u64) -> Option<SocketKey> {
        if event.cookie().is_some() && has_cookies(event.transport) {
            return event.key;
        }
        let tracked = self.table.at(event.port_key(), event.address, Some(netns));
        tracked.or(event.key)
    }

    /// Corrects the tracked sockets by a scan that began with the last
    /// [`begin_scan`](Self::begin_scan), and adds an event for each that was not tracked, has come
    /// further than was reported, or is gone. All events since must have been observed. Returns
    /// whether another scan is needed: too much happened meanwhile, or something is only believed
    /// when two scans agree.
    pub fn reconcile(
        &mut self,
        mut found_sockets: Vec<FoundSocket>,
        coverage: &Coverage,
        out: &mut Vec<TrackedEvent>,
    ) -> bool {
        let Running {
            events,
            closed,
            overrun,
            behind,
        } = self.deferred.running.take().unwrap_or_default();
        self.attribute_by_scan(&found_sockets, out);
        let accepted = self.take_accepted(&mut found_sockets);
        let deferred: HashSet<SocketKey> = events.iter().filter_map(|event| event.key).collect();
        let mut found = HashSet::new();
        let mut unsure = HashSet::new();
        for socket in found_sockets {
            let key = self.key_of(&socket.event, socket.netns);
            found.extend(key);
            let Some(key) = key else {
                continue;
            };
            if self
                .table
                .is_crowded(key, Some(socket.netns), socket.event.port_key())
            {
                continue;
            }
            // A deferred close comes after what it closes.
            let is_deferred = deferred.contains(&key);
            // A kernel socket, or one that is just being closed, or closed and not observed: if the
            // next scan shows it too, it lasts.
            let is_unsure =
                (socket.holders.is_empty() || overrun) && !self.unsure_once.contains(&key);
            if self.table.known(key).is_some() {
                if !behind {
                    self.advance(key, &socket, out);
                }
            } else if closed.contains(&key) && !is_deferred {
                continue;
            } else if is_unsure && (overrun || !is_deferred) {
                unsure.insert(key);
            } else {
                self.add(key, &socket, out);
            }
        }
        // One for the holders of tracked sockets shows no others.
        if !coverage.read.is_empty() {
            self.unsure_once = unsure;
        }
        let is_absent = !behind
            && (self.close_absent(&found, coverage, out)
                | self.close_absent_crowded(coverage, out));
        self.table.holders_found(self.table.round);
        self.table.limit_records();
        self.attribute_steered(&accepted, out);
        for event in events {
            self.apply(&event, None, out);
        }
        overrun || is_absent || !self.unsure_once.is_empty()
    }

    /// The events for `found` alone, as a monitor that starts now would report them.
    pub fn list(&mut self, found: Vec<FoundSocket>) -> Vec<TrackedEvent> {
        let mut out = Vec::new();
        for (index, socket) in found.into_iter().enumerate() {
            let key = socket.event.key;
            let key = key.unwrap_or(SocketKey::Inode(index as u64));
            self.add(key, &socket, &mut out);
        }
        out
    }

    /// Reports the events that waited for this scan, with the holders that it shows.
    fn attribute_by_scan(&mut self, found: &[FoundSocket], out: &mut Vec<TrackedEvent>) {
        if self.deferred.unattributed.is_empty() {
            return;
        }
        let round = self.table.round;
        let place = |event: &Event| (event.port_key(), event.address);
        let (mut by_key, mut by_place) = (HashMap::new(), HashMap::new());
        for one in found {
            match one.event.key {
                Some(SocketKey::Inode(_)) => {
                    by_place.entry(place(&one.event)).or_insert(one);
                }
                key => {
                    by_key.insert(key, one);
                }
            }
        }
        for (begun, event) in std::mem::take(&mut self.deferred.unattributed) {
            let its = by_key
                .get(&event.key)
                .or_else(|| by_place.get(&place(&event)));
            match its.copied() {
                Some(found) if !found.holders.is_empty() => {
                    self.apply(&event, Some(found.into()), out)
                }
                // A scan that began before the event need not show its socket.
                _ if begun >= round => self.deferred.unattributed.push((begun, event)),
                _ => self.apply(&event, None, out),
            }
        }
    }

    fn add(&mut self, key: SocketKey, found: &FoundSocket, out: &mut Vec<TrackedEvent>) {
        let event = &found.event;
        let port_key = event.port_key();
        // An accepted connection outlives its listener, and was reported as such.
        if event.kind == EventKind::Connect
            && !found.is_outgoing
            && self.table.was_listened_on(found.netns, port_key)
        {
            return;
        }
        let mut socket = TrackedSocket::new(port_key);
        socket.origin = Origin::Snapshot;
        socket.address = event.address;
        socket.stage = stage(event.kind);
        socket.device.clone_from(&event.device);
        socket.v6only = event.v6only;
        socket.netns = Some(found.netns);
        socket.is_kernel_socket = event.is_kernel_socket;
        socket.marked = found.marked;
        socket.round = self.table.round;
        socket.process = found.holders.first().cloned();
        socket.set_holders(found.into());
        self.table.put(key, socket.clone());
        socket.is_crowded = self.table.is_crowded(key, socket.netns, port_key);
        out.push(self.tracked_event(event, &socket, Some(key), Origin::Snapshot));
        self.table.set_holders(key, found, event.time);
    }

    /// Updates a tracked socket; its listen or connect can have been lost.
    fn advance(&mut self, key: SocketKey, found: &FoundSocket, out: &mut Vec<TrackedEvent>) {
        let event = &found.event;
        // What happened since the scan began is newer than what it shows: another scan is to look for the
        // holders, or a program that took over meanwhile would pass for one that was reported.
        let round = self.table.round;
        let is_newer = self
            .table
            .known(key)
            .is_some_and(|socket| socket.round >= round && socket.process.is_some());
        if !is_newer {
            self.hand_over(key, found, out);
            self.table.set_holders(key, found, event.time);
        }
        if found.marked && event.is_kernel_socket == Some(false) {
            self.table.mark(key);
        }
        let round = self.table.round;
        let Some(socket) = self.table.get_mut(key) else {
            return;
        };
        socket.absent_once = false;
        socket.netns = socket.netns.or(Some(found.netns));
        // It can have been bound to a device after its port.
        if event.cookie().is_some() {
            socket.device.clone_from(&event.device);
            socket.v6only = event.v6only.or(socket.v6only);
        }
        // What happened since the scan began has been reported.
        let is_news = socket.round < round && stage(event.kind) > socket.stage;
        if !is_news || event.transport != Transport::Tcp {
            return;
        }
        socket.stage = stage(event.kind);
        socket.shut_down = false;
        let socket = socket.clone();
        out.push(self.tracked_event(event, &socket, Some(key), Origin::Snapshot));
    }

    /// Notes who holds a tracked socket now, and reports it if that is another program than was
    /// reported.
    fn hand_over(&mut self, key: SocketKey, found: &FoundSocket, out: &mut Vec<TrackedEvent>) {
        if found.holders.is_empty() {
            return;
        }
        let Some(socket) = self.table.get_mut(key) else {
            return;
        };
        let Handover { owner, newcomer } = Handover::of(socket, &found.holders);
        socket.process = owner;
        if let Some(newcomer) = newcomer {
            socket.set_holders(found.into());
            let mut socket = socket.clone();
            socket.process = Some(newcomer);
            let event = socket.event(key, EventKind::Handover, found.event.time);
            out.push(self.tracked_event(&event, &socket, Some(key), Origin::Snapshot));
        }
    }

    /// Closes what this scan and the one before would have shown: neither is of one moment, and a
    /// socket that is handed over while /proc is read can escape one. Returns whether something is
    /// absent from this one alone.
    fn close_absent(
        &mut self,
        found: &HashSet<SocketKey>,
        coverage: &Coverage,
        out: &mut Vec<TrackedEvent>,
    ) -> bool {
        let round = self.table.round;
        let absent: Vec<SocketKey> = self
            .table
            .open()
            .filter(|(key, socket)| {
                socket.round < round && !found.contains(key) && covers(coverage, socket)
            })
            .map(|(key, _)| key)
            .collect();
        let mut is_new = false;
        for key in absent {
            let Some(socket) = self.table.get_mut(key) else {
                continue;
            };
            if !std::mem::replace(&mut socket.absent_once, true) {
                is_new = true;
                continue;
            }
            let socket = socket.clone();
            if !socket.shut_down {
                let event = socket.event(key, EventKind::Close, Timestamp::now());
                out.push(self.tracked_event(&event, &socket, Some(key), Origin::Snapshot));
            }
            self.sessions.closed(key, &socket, None);
            self.table.store(key, &socket, EventKind::Close);
        }
        is_new
    }

    /// As [`close_absent`](Self::close_absent), of the sockets that are counted only.
    fn close_absent_crowded(&mut self, coverage: &Coverage, out: &mut Vec<TrackedEvent>) -> bool {
        let table = &mut self.table;
        if coverage.absent.is_empty() && !table.crowds().has_absent() {
            return false;
        }
        let absent = coverage.absent.iter().copied().filter(|cookie| {
            let socket = table.get(SocketKey::Cookie(*cookie));
            socket.is_some_and(|socket| socket.is_crowded && covers(coverage, &socket))
        });
        let absent: Vec<u64> = absent.collect();
        for cookie in table.crowds().absent(absent.into_iter()) {
            let key = SocketKey::Cookie(cookie);
            if let Some(socket) = self.table.get(key) {
                let event = socket.event(key, EventKind::Close, Timestamp::now());
                out.push(self.tracked_event(&event, &socket, Some(key), Origin::Snapshot));
                self.table.store(key, &socket, EventKind::Close);
            }
        }
        self.table.crowds().has_absent()
    }
}

/// Whether a scan with that coverage shows the socket if it exists.
fn covers(coverage: &Coverage, socket: &TrackedSocket) -> bool {
    let is_readable = socket
        .netns
        .is_some_and(|netns| coverage.read.contains(&netns));
    let is_watched = coverage.scope.watches(socket.port_key);
    let transport = socket.port_key.transport;
    let is_shown = !coverage.unshown.contains(&transport)
        && (coverage.bound
            || transport != Transport::Tcp
            || socket.stage == Stage::Listening
            // Nothing depends on it but who listens should it listen again.
            || socket.shut_down);
    is_readable && is_watched && is_shown
}

/// Whether the events of that transport carry cookies.
pub const fn has_cookies(transport: Transport) -> bool {
    !matches!(transport, Transport::Sctp | Transport::Dccp)
}

fn stage(kind: EventKind) -> Stage {
    Stage::after(kind).unwrap_or(Stage::Bound)
}
