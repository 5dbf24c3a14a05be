//! Joins a snapshot with what events have told. The hooks are attached before the snapshot is
//! taken, so what it misses has been told or will be; the cookie says what is the same socket.

use std::{collections::HashSet, rc::Rc};

use jiff::Timestamp;

use super::{
    Tracker,
    table::{Place, Stage, TrackedSocket},
};
use crate::{
    alert::{Alert, Holder, Origin},
    inventory::{Coverage, FoundSocket},
    model::{Event, EventKind, SocketKey, Transport},
    tracker::Host,
};

/// What happens while a snapshot is being taken.
#[derive(Default)]
pub(super) struct Waiting {
    /// Events that the snapshot may explain: of sockets that nothing was told of yet.
    events: Vec<Event>,
    /// Keys that were closed since it began: whatever it says, they are gone.
    closed: HashSet<SocketKey>,
    /// Whether more than these happened: what is not known is then left to the next one.
    overrun: bool,
}

/// Events and keys that are kept while a snapshot is being taken.
const WAITING: usize = 65_536;

impl<H: Host> Tracker<H> {
    /// Notes that a snapshot begins. All events that happened before must have been observed.
    pub fn begin_snapshot(&mut self) {
        self.table.round += 1;
        self.waiting = Some(Waiting::default());
    }

    /// Notes that not all that happens is observed: what a snapshot that is being taken shows and is
    /// not known is left to the next one.
    pub fn overrun(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.overrun = true;
        }
    }

    /// Keeps an event that the snapshot may explain; gives any other back.
    pub(super) fn wait(&mut self, event: Event) -> Option<Event> {
        let Some(waiting) = &mut self.waiting else {
            return Some(event);
        };
        let is_unknown = event.key.is_none_or(|key| self.table.known(key).is_none());
        if event.kind == EventKind::Close
            && let Some(key) = event.key
        {
            waiting.overrun |= waiting.closed.len() >= WAITING;
            if !waiting.overrun {
                waiting.closed.insert(key);
            }
        }
        let may_wait = matches!(event.kind, EventKind::Close | EventKind::Accept);
        if may_wait && is_unknown && waiting.events.len() < WAITING {
            waiting.events.push(event);
            return None;
        }
        Some(event)
    }

    /// Adds the alerts for what waits for a snapshot that will not come.
    pub fn end_waiting(&mut self, alerts: &mut Vec<Alert>) {
        for event in self.waiting.take().unwrap_or_default().events {
            self.settle(&event, alerts);
        }
    }

    /// Whether a snapshot that is being taken says of this socket what is known already.
    pub fn knows(&self, event: &Event, netns: u64) -> bool {
        self.key_of(event, netns)
            .is_some_and(|key| self.table.known(key).is_some())
    }

    /// Whether the kernel side should be told of this socket, which was there before it. That takes a
    /// duplicate of it, which keeps its port taken for a moment: so only of one that was there a
    /// second ago too, and once.
    pub fn is_to_mark(&mut self, event: &Event, netns: u64) -> bool {
        let key = self.key_of(event, netns);
        key.is_some_and(|key| self.table.try_to_mark(key))
    }

    /// Whether it is known, and the kernel side reports its close.
    pub fn is_marked(&self, event: &Event, netns: u64) -> bool {
        let key = self.key_of(event, netns);
        let known = key.and_then(|key| self.table.known(key));
        known.is_some_and(|occupancy| occupancy.marked)
    }

    /// The key of a socket that a snapshot shows: SCTP's and DCCP's events have another than its
    /// cookie, and without sock_diag it has none.
    fn key_of(&self, event: &Event, netns: u64) -> Option<SocketKey> {
        if event.cookie().is_some() && has_cookies(event.transport) {
            return event.key;
        }
        let place = Place::of(event);
        let there = self.table.at(place, event.address, Some(netns));
        there.or(event.key)
    }

    /// Puts the tracker right by a snapshot that began with the last
    /// [`begin_snapshot`](Self::begin_snapshot), and adds an alert for each that was not known, has
    /// come further than was told, or is gone. All events since must have been observed. Whether
    /// it must be taken again, since too much happened meanwhile or something is to be believed only
    /// when two say it.
    pub fn reconcile(
        &mut self,
        findings: Vec<FoundSocket>,
        coverage: &Coverage,
        alerts: &mut Vec<Alert>,
    ) -> bool {
        let Waiting {
            events,
            closed,
            overrun,
        } = self.waiting.take().unwrap_or_default();
        let waits: HashSet<SocketKey> = events.iter().filter_map(|event| event.key).collect();
        let mut found = HashSet::new();
        let mut nobodys = HashSet::new();
        for finding in findings {
            let key = self.key_of(&finding.event, finding.netns);
            found.extend(key);
            let Some(key) = key else {
                continue;
            };
            // A close that waits comes after what it closes.
            let waits = waits.contains(&key);
            // The kernel's own, or just being closed: that is over by the next one.
            let is_unsure = finding.holders.is_empty() && !self.nobodys.contains(&key);
            if self.table.known(key).is_some() {
                self.advance(key, &finding, alerts);
            } else if overrun || closed.contains(&key) && !waits {
                continue;
            } else if is_unsure && !waits {
                nobodys.insert(key);
            } else {
                self.add(key, &finding, alerts);
            }
        }
        self.nobodys = nobodys;
        let is_missing = self.close_missing(&found, coverage, alerts);
        self.table.all_looked(self.table.round);
        for event in events {
            self.settle(&event, alerts);
        }
        overrun || is_missing || !self.nobodys.is_empty()
    }

    /// The alerts for `findings` alone, as a monitor that starts now would tell them.
    pub fn list(&mut self, findings: Vec<FoundSocket>) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for (index, finding) in findings.into_iter().enumerate() {
            let key = finding.event.key.unwrap_or(SocketKey::Inode(index as u64));
            self.add(key, &finding, &mut alerts);
        }
        alerts
    }

    fn add(&mut self, key: SocketKey, finding: &FoundSocket, alerts: &mut Vec<Alert>) {
        let event = &finding.event;
        let place = Place::of(event);
        // A connection that was accepted outlives its listener: it is part of that stay.
        if event.kind == EventKind::Connect && self.table.was_listened_on(place) {
            return;
        }
        let mut occupancy = TrackedSocket::new(place);
        occupancy.origin = Origin::Snapshot;
        occupancy.address = event.address;
        occupancy.stage = stage(event.kind);
        occupancy.netns = Some(finding.netns);
        occupancy.is_kernel_socket = event.is_kernel_socket;
        occupancy.marked = finding.marked;
        occupancy.round = self.table.round;
        occupancy.process = finding.holders.first().cloned();
        occupancy.holders = holders(finding);
        let alert = self.alert(event, &occupancy, Some(key), Origin::Snapshot);
        self.tell(alert, alerts);
        self.table.put(key, occupancy);
        self.table.looked(key, holders(finding), event.time);
    }

    /// Updates one that is known; its listen or connect can have been lost.
    fn advance(&mut self, key: SocketKey, finding: &FoundSocket, alerts: &mut Vec<Alert>) {
        let event = &finding.event;
        self.table.looked(key, holders(finding), event.time);
        if finding.marked && event.is_kernel_socket == Some(false) {
            self.table.mark(key);
        }
        let round = self.table.round;
        let Some(occupancy) = self.table.get_mut(key) else {
            return;
        };
        occupancy.missed = false;
        occupancy.netns = occupancy.netns.or(Some(finding.netns));
        if occupancy.process.is_none() {
            occupancy.process = finding.holders.first().cloned();
        }
        // What happened since it began has been told.
        let is_news = occupancy.round < round && stage(event.kind) > occupancy.stage;
        if !is_news || event.transport != Transport::Tcp {
            return;
        }
        occupancy.stage = stage(event.kind);
        let occupancy = occupancy.clone();
        let alert = self.alert(event, &occupancy, Some(key), Origin::Snapshot);
        self.tell(alert, alerts);
    }

    /// Closes what this snapshot and the one before would have shown: none of them is of one moment, and who
    /// hands a socket over while /proc is read can escape one. Whether something is missing from this one alone.
    fn close_missing(
        &mut self,
        found: &HashSet<SocketKey>,
        coverage: &Coverage,
        alerts: &mut Vec<Alert>,
    ) -> bool {
        let round = self.table.round;
        let missing: Vec<SocketKey> = self
            .table
            .open()
            .filter(|(key, occupancy)| {
                let is_readable = match occupancy.netns {
                    Some(netns) => !coverage.unread.contains(&netns),
                    None => coverage.unread.is_empty(),
                };
                let transport = occupancy.place.transport;
                let is_shown = !coverage.unshown.contains(&transport)
                    && (coverage.bound
                        || transport != Transport::Tcp
                        || occupancy.stage == Stage::Listening);
                occupancy.round < round && is_readable && is_shown && !found.contains(key)
            })
            .map(|(key, _)| key)
            .collect();
        let mut is_new = false;
        for key in missing {
            let Some(occupancy) = self.table.get_mut(key) else {
                continue;
            };
            if !std::mem::replace(&mut occupancy.missed, true) {
                is_new = true;
                continue;
            }
            let occupancy = occupancy.clone();
            let event = Event {
                kind: EventKind::Close,
                time: Timestamp::now(),
                key: Some(key),
                netns_cookie: None,
                netns: occupancy.netns,
                transport: occupancy.place.transport,
                address: occupancy.address,
                port: occupancy.place.port,
                peer: None,
                task: None,
                is_kernel_socket: occupancy.is_kernel_socket,
                binder: None,
            };
            let alert = self.alert(&event, &occupancy, Some(key), Origin::Snapshot);
            self.tell(alert, alerts);
            self.table.store(key, &occupancy, EventKind::Close);
        }
        is_new
    }
}

/// Whether the events of that transport carry cookies.
const fn has_cookies(transport: Transport) -> bool {
    !matches!(transport, Transport::Sctp | Transport::Dccp)
}

fn holders(finding: &FoundSocket) -> Rc<[Holder]> {
    let holders = finding.holders.iter();
    holders.map(|process| Holder::from(&**process)).collect()
}

fn stage(kind: EventKind) -> Stage {
    Stage::after(kind).unwrap_or(Stage::Bound)
}
