//! The sockets that are kept, and for how long.

mod room;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    Stage, TrackedSocket,
    crowd::{Crowded, Crowds},
};
use crate::{
    inventory::{FoundSocket, LeftOut, Targets},
    model::{EventKind, PortKey, SocketKey},
    process::Process,
};

/// A listener of which nothing but its accepts is known, by its network namespace.
pub(super) type UntrackedListener = (Option<u64>, PortKey);

/// Untracked listeners that are remembered; past that, all are forgotten.
const UNTRACKED_LISTENERS: usize = 4096;

/// Places of listeners that are remembered; past that, those in the network namespace with most of
/// them are forgotten.
const LISTENED: usize = 16_384;

/// Open sockets that are kept. Past that, some of whoever has most are counted only.
pub(super) const OPEN: usize = 65_536;

/// Closed sockets that are kept.
pub(super) const CLOSED: usize = 256;

/// How long the holders of a listener that is connected to are taken for unchanged.
const HOLDERS_LIFETIME: SignedDuration = SignedDuration::from_secs(5);

#[derive(Default)]
pub(super) struct Table {
    /// The smallest key is about the oldest socket.
    open: BTreeMap<SocketKey, TrackedSocket>,
    /// Their keys by port.
    by_port: BTreeSet<(PortKey, SocketKey)>,
    /// Who has how many of them, and those that are open and counted only.
    crowds: Crowds,
    /// The last that closed: an accept on another CPU can be reported after the close.
    closed: HashMap<SocketKey, TrackedSocket>,
    /// Their keys, the oldest first.
    closed_keys: VecDeque<SocketKey>,
    /// Open sockets whose holders a scan is to look for.
    holders_pending: HashSet<SocketKey>,
    /// Open sockets whose close is not reported.
    unmarked: HashSet<SocketKey>,
    /// Open sockets that got their mark later than they began, and when.
    marked_at: HashMap<SocketKey, Timestamp>,
    /// Untracked listeners that a remote host has reached.
    reached: HashSet<UntrackedListener>,
    /// Where a listener has been: connections can outlive it.
    listened: HashSet<(Option<u64>, PortKey)>,
    evicted: u64,
    /// At most so many bytes of records are kept whole; the last one is not counted twice.
    record_bytes: usize,
    last_record: Option<*const Process>,
    /// Scans that were begun.
    pub(super) round: u64,
}

impl Table {
    pub(super) fn known(&self, key: SocketKey) -> Option<&TrackedSocket> {
        self.open.get(&key).or_else(|| self.closed.get(&key))
    }

    /// Whether its close was reported.
    pub(super) fn has_closed(&self, key: SocketKey) -> bool {
        !self.open.contains_key(&key) && self.closed.contains_key(&key)
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (SocketKey, &TrackedSocket)> {
        self.open.iter().map(|(key, socket)| (*key, socket))
    }

    pub(super) fn get_mut(&mut self, key: SocketKey) -> Option<&mut TrackedSocket> {
        self.open.get_mut(&key)
    }

    /// The key of the open socket there; a listener before others.
    pub(super) fn at(
        &self,
        port_key: PortKey,
        address: Option<IpAddr>,
        netns: Option<u64>,
    ) -> Option<SocketKey> {
        let first = (port_key, SocketKey::Cookie(0));
        let last = (port_key, SocketKey::Inode(u64::MAX));
        let there = self.by_port.range(first..=last);
        there
            .filter_map(|(_, key)| self.open.get_key_value(key))
            .filter(|(_, socket)| socket.is_at(port_key, address, netns))
            .max_by_key(|(_, socket)| socket.stage == Stage::Listening)
            .map(|(key, _)| *key)
    }

    /// The key of the open listener there that had no mark at that time: accepted sockets inherit one.
    pub(super) fn unmarked_listener_at(
        &self,
        port_key: PortKey,
        address: Option<IpAddr>,
        netns: Option<u64>,
        time: Timestamp,
    ) -> Option<SocketKey> {
        let later = self.marked_at.iter().filter(|(_, at)| **at > time);
        let later = later.map(|(key, _)| *key);
        let mut unmarked = self.unmarked.iter().copied().chain(later);
        unmarked.find(|key| {
            self.open.get(key).is_some_and(|socket| {
                socket.stage == Stage::Listening && socket.is_at(port_key, address, netns)
            })
        })
    }

    pub(super) fn accepted(&mut self, key: SocketKey, reached: bool, time: Timestamp) {
        let Some(socket) = self.open.get_mut(&key) else {
            return;
        };
        socket.reached |= reached;
        let is_old = |at: Timestamp| time.duration_since(at) > HOLDERS_LIFETIME;
        if socket.holders_at.is_some_and(is_old) {
            self.holders_pending.insert(key);
        }
    }

    /// Whether a listener has been there; one whose network namespace is not known counts for all.
    pub(super) fn was_listened_on(&self, netns: u64, port_key: PortKey) -> bool {
        let places = [Some(netns), None].map(|netns| (netns, port_key));
        places.iter().any(|place| self.listened.contains(place))
    }

    pub(super) fn is_reached(&self, listener: UntrackedListener) -> bool {
        self.reached.contains(&listener)
    }

    pub(super) fn reach(&mut self, listener: UntrackedListener) {
        if self.reached.len() >= UNTRACKED_LISTENERS {
            self.reached.clear();
        }
        self.reached.insert(listener);
    }

    pub(super) fn store(&mut self, key: SocketKey, socket: &TrackedSocket, kind: EventKind) {
        match kind {
            EventKind::Bind | EventKind::Listen | EventKind::Connect => {
                let mut socket = socket.clone();
                socket.round = self.round;
                let is_kernel_socket = socket.is_kernel_socket == Some(true);
                if !is_kernel_socket {
                    self.holders_pending.insert(key);
                }
                // The programs that report it mark it. `sock_release` does not run for kernel sockets.
                socket.marked = !is_kernel_socket;
                self.put(key, socket);
            }
            EventKind::Close => {
                self.remove(key);
                if self.closed.insert(key, socket.clone()).is_none() {
                    self.closed_keys.push_back(key);
                }
                if self.closed.len() > CLOSED
                    && let Some(oldest) = self.closed_keys.pop_front()
                {
                    self.closed.remove(&oldest);
                }
            }
            // Neither opens nor closes a socket: after a close it must not bring one back.
            _ => {}
        }
    }

    /// Notes that a listener was shut down. One that is not known stays so: should it last, a scan
    /// shows it.
    pub(super) fn shut_down(&mut self, key: SocketKey) {
        let Some(mut socket) = self.open.get(&key).cloned() else {
            return;
        };
        socket.shut_down = true;
        socket.stage = Stage::Bound;
        socket.round = self.round;
        // MPTCP's are not released: only a scan shows that they are gone.
        socket.marked = false;
        socket.tried = true;
        self.put(key, socket);
    }

    /// Where connections can outlive their listener. One user can make many network namespaces.
    fn remember_listener(&mut self, place: UntrackedListener) {
        if self.listened.len() >= LISTENED && !self.listened.contains(&place) {
            let mut places: HashMap<Option<u64>, usize> = HashMap::new();
            for (netns, _) in &self.listened {
                *places.entry(*netns).or_default() += 1;
            }
            let most = places.into_iter().max_by_key(|(_, places)| *places);
            self.listened
                .retain(|(netns, _)| most.is_none_or(|(most, _)| *netns != most));
        }
        self.listened.insert(place);
    }

    /// Tracks the socket from now on, or counts it only if there are too many like it.
    pub(super) fn put(&mut self, key: SocketKey, mut socket: TrackedSocket) {
        let is_counted = self.crowds.has(key)
            || (!self.open.contains_key(&key) && !self.crowds.admit(key, &mut socket));
        if is_counted {
            self.holders_pending.remove(&key);
            self.evicted += u64::from(!self.crowds.count(key, &socket));
            return;
        }
        if socket.stage == Stage::Listening {
            self.remember_listener((socket.netns, socket.port_key));
        }
        if socket.marked {
            self.unmarked.remove(&key);
        } else {
            self.unmarked.insert(key);
        }
        self.note_record(&socket);
        let port_key = socket.port_key;
        if let Some(before) = self.open.insert(key, socket)
            && before.port_key != port_key
        {
            self.by_port.remove(&(before.port_key, key));
        }
        self.by_port.insert((port_key, key));
        if self.open.len() > OPEN {
            self.make_room();
        }
        self.limit_new_records();
    }

    /// Forgets the sockets on such ports.
    pub(super) fn forget(&mut self, is_forgotten: impl Fn(PortKey) -> bool) {
        let keys = self.open.iter().chain(&self.closed);
        let keys: Vec<SocketKey> = keys
            .filter(|(_, socket)| is_forgotten(socket.port_key))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.remove(key);
            if self.closed.remove(&key).is_some() {
                self.closed_keys.retain(|closed| *closed != key);
            }
        }
        self.crowds.forget(&is_forgotten);
        self.listened
            .retain(|(_, port_key)| !is_forgotten(*port_key));
        self.reached
            .retain(|(_, port_key)| !is_forgotten(*port_key));
    }

    fn remove(&mut self, key: SocketKey) -> Option<TrackedSocket> {
        self.crowds.remove(key);
        self.holders_pending.remove(&key);
        self.unmarked.remove(&key);
        self.marked_at.remove(&key);
        let socket = self.open.remove(&key)?;
        self.by_port.remove(&(socket.port_key, key));
        self.crowds.leave(&socket);
        Some(socket)
    }

    /// What is known of a socket, tracked or counted only.
    pub(super) fn get(&self, key: SocketKey) -> Option<TrackedSocket> {
        self.known(key).cloned().or_else(|| self.crowds.get(key))
    }

    /// Whether it is tracked, or open and counted only.
    pub(super) fn has(&self, key: SocketKey) -> bool {
        self.known(key).is_some() || self.crowds.has(key)
    }

    /// Whether a socket that is not tracked is one of too many there.
    pub(super) fn is_crowded(&self, key: SocketKey, netns: Option<u64>, port_key: PortKey) -> bool {
        self.crowds.has(key)
            || (self.crowds.overflows_at(netns, port_key) && !self.open.contains_key(&key))
    }

    pub(super) const fn crowds(&mut self) -> &mut Crowds {
        &mut self.crowds
    }

    pub(super) fn take_crowded(&mut self) -> Vec<Crowded> {
        self.crowds.take_crowded()
    }

    /// What a scan leaves out.
    pub(super) fn left_out(&self) -> LeftOut {
        let places = self.crowds.overflowing();
        let tracked = self.open.keys().filter(|_| !places.is_empty());
        LeftOut {
            cookies: self.crowds.counted(),
            tracked: tracked.filter_map(|key| key.cookie()).collect(),
            places: places.clone(),
        }
    }

    /// Notes who has the socket open by a scan.
    pub(super) fn set_holders(&mut self, key: SocketKey, found: &FoundSocket, time: Timestamp) {
        if found.is_known {
            return;
        }
        if let Some(socket) = self.open.get_mut(&key) {
            socket.holders_at = Some(time);
            if !found.holders.is_empty() {
                socket.set_holders(found.into());
            }
        }
        self.holders_pending.remove(&key);
    }

    /// What a scan need not read, and what it is to look for.
    pub(super) fn targets(&self) -> Targets {
        let mut targets = Targets {
            left_out: self.left_out(),
            ..Targets::default()
        };
        targets.known.reserve(self.open.len());
        let mut namespaces = HashSet::new();
        let mut processes = HashSet::new();
        let (mut first, mut last) = (u16::MAX, 0);
        let mut is_certain = true;
        for (key, socket) in &self.open {
            let cookie = key.cookie();
            if !self.holders_pending.contains(key) {
                // Kernel sockets, and what is in transit, have none.
                if socket.is_to_mark() {
                    processes.extend(socket.process.as_ref().map(|process| process.pid));
                } else {
                    targets.known.extend(cookie);
                }
                continue;
            }
            is_certain &= cookie.is_some() && socket.netns.is_some() && socket.process.is_some();
            targets.pending.extend(cookie);
            namespaces.extend(socket.netns);
            let port = socket.port_key.port;
            (first, last) = (first.min(port), last.max(port));
            let others = socket.holders.iter().map(|holder| holder.pid);
            let owner = socket.process.as_ref().map(|process| process.pid);
            processes.extend(owner.into_iter().chain(others));
        }
        let is_any = !targets.pending.is_empty();
        targets.places = (is_any && is_certain).then_some((namespaces, first..=last));
        targets.processes = processes.into_iter().collect();
        targets
    }

    /// Holders are to be looked for again only of what is reported from here on.
    pub(super) fn holders_found(&mut self, before: u64) {
        let open = &self.open;
        self.holders_pending
            .retain(|key| open.get(key).is_some_and(|socket| socket.round >= before));
    }

    /// Whether it is open, unmarked, and marking it was not tried; from now on it was.
    pub(super) fn try_to_mark(&mut self, key: SocketKey) -> bool {
        let Some(socket) = self.open.get_mut(&key) else {
            return false;
        };
        let is_new = socket.is_to_mark();
        socket.tried |= is_new;
        is_new
    }

    /// Whether there is one for which [`try_to_mark`](Self::try_to_mark) is true.
    pub(super) fn has_to_mark(&self) -> bool {
        let mut unmarked = self.unmarked.iter();
        unmarked.any(|key| self.open.get(key).is_some_and(TrackedSocket::is_to_mark))
    }

    /// Notes that the BPF programs report its close.
    pub(super) fn mark(&mut self, key: SocketKey) {
        if let Some(socket) = self.open.get_mut(&key) {
            socket.marked = true;
        }
        if self.unmarked.remove(&key) {
            self.marked_at.insert(key, Timestamp::now());
        }
    }

    pub(super) const fn take_evicted(&mut self) -> u64 {
        std::mem::replace(&mut self.evicted, 0)
    }

    pub(super) fn has_holders_pending(&self) -> bool {
        !self.holders_pending.is_empty()
    }

    pub(super) fn has_unmarked(&self) -> bool {
        !self.unmarked.is_empty()
    }

    /// How many are open, and how many closed ones are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.open.len(), self.closed.len())
    }
}
