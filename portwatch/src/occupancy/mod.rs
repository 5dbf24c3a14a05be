//! The state machine: events in, alerts out. An occupancy is one socket's stay on a watched port,
//! from bind to close; it gives the events that carry no process theirs.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::IpAddr,
    rc::Rc,
};

use crate::{
    alert::{Alert, Family, Origin, Peer, RegistryWord, SCHEMA, Severity, Socket},
    event::{Event, EventKind, Transport},
    host::Host,
    policy::severity,
    printable::Printable,
    process::Process,
    registry::Registry,
};

/// One socket's stay on a watched port.
#[derive(Clone, Debug, Default)]
struct Occupancy {
    process: Option<Rc<Process>>,
    netns: Option<u64>,
    /// Whether somebody from elsewhere has connected.
    reached: bool,
}

/// A listener without a cookie, from before the kernel side was there.
type Stranger = (Option<u64>, Transport, u16);

/// The occupancies of this host.
pub struct Occupancies<H> {
    host: H,
    registry: Registry,
    name: Printable,
    /// By the events' key, a cookie mostly; cookies grow, so the first is about the oldest.
    open: BTreeMap<u64, Occupancy>,
    /// The newest that closed: an accept on another CPU can be reported after the close.
    closed: VecDeque<(u64, Occupancy)>,
    /// The listeners from before that somebody from elsewhere has reached.
    reached: HashSet<Stranger>,
}

/// Open occupancies that are kept. Past that the oldest is forgotten: its later alerts name no
/// process.
const OPEN: usize = 65_536;

/// Closed occupancies that are kept.
const CLOSED: usize = 256;

/// Listeners from before the kernel side that are remembered as reached.
const REACHED: usize = 4096;

impl<H: Host> Occupancies<H> {
    /// No occupancies yet, on the host called `name`.
    pub fn new(host: H, registry: Registry, name: Printable) -> Self {
        Self {
            host,
            registry,
            name,
            open: BTreeMap::new(),
            closed: VecDeque::new(),
            reached: HashSet::new(),
        }
    }

    /// What the operator should read of `event`.
    pub fn observe(&mut self, event: &Event) -> Alert {
        let occupancy = self.update(event);
        let first_from_elsewhere = event.kind == EventKind::Accept && self.first_reach(event);
        let port = event.port;
        let verdict = self.registry.verdict(port, event.transport);
        let as_of = self.registry.as_of();
        Alert {
            schema: SCHEMA,
            time: event.time,
            host: self.name.clone(),
            event: event.kind,
            severity: severity(event.kind, event.transport, first_from_elsewhere),
            origin: Origin::Live,
            port: Some(port),
            transport: Some(event.transport),
            family: event.address.map(Family::from),
            address: event.address,
            peer: event.peer.map(|peer| Peer {
                address: peer.ip(),
                port: peer.port(),
            }),
            registry: verdict.map(|verdict| RegistryWord::new(verdict, as_of)),
            socket: Socket {
                cookie: event.cookie,
                netns: occupancy.netns,
            },
            process: occupancy.process,
            lost: None,
            detail: None,
        }
    }

    /// The alert for reports that found the ring full.
    pub fn lose(&self, count: u64) -> Alert {
        Alert::loss(count, self.name.clone())
    }

    /// The alert for a part of the sensor that was lost or regained.
    pub fn report_health(&self, severity: Severity, detail: &str) -> Alert {
        Alert::health(severity, Printable::from(detail), self.name.clone())
    }

    /// Moves the event's occupancy on, and returns it as it is for this event.
    fn update(&mut self, event: &Event) -> Occupancy {
        let known = event.key.and_then(|key| self.known(key)).cloned();
        let mut occupancy = known.unwrap_or_default();
        match event.kind {
            EventKind::Bind | EventKind::Listen | EventKind::Connect => {
                if let Some(task) = &event.task {
                    let now = self.host.identify(task);
                    occupancy.process = Some(fuller(now, occupancy.process));
                } else if occupancy.process.is_none() {
                    occupancy.process = self.host.holder(event);
                }
            }
            EventKind::Accept | EventKind::Close | EventKind::Loss | EventKind::Health => {}
        }
        if occupancy.netns.is_none() {
            let actor = event.task.as_ref().map(|task| task.tid);
            let tid = actor.or_else(|| occupancy.process.as_ref().map(|process| process.pid));
            occupancy.netns = match event.netns_cookie {
                Some(cookie) => self.host.netns(cookie, tid),
                None => actor.and_then(|tid| self.host.thread_netns(tid)),
            };
        }
        if let Some(key) = event.key {
            self.store(key, &occupancy, event.kind);
        }
        occupancy
    }

    fn known(&self, key: u64) -> Option<&Occupancy> {
        self.open.get(&key).or_else(|| {
            self.closed
                .iter()
                .rev()
                .find(|(closed, _)| *closed == key)
                .map(|(_, kept)| kept)
        })
    }

    fn store(&mut self, key: u64, occupancy: &Occupancy, kind: EventKind) {
        match kind {
            EventKind::Bind | EventKind::Listen | EventKind::Connect => {
                self.open.insert(key, occupancy.clone());
                if self.open.len() > OPEN {
                    self.open.pop_first();
                }
            }
            EventKind::Close => {
                self.open.remove(&key);
                self.closed.push_back((key, occupancy.clone()));
                if self.closed.len() > CLOSED {
                    self.closed.pop_front();
                }
            }
            // Neither begins nor ends a stay: after a close it must not bring one back.
            EventKind::Accept | EventKind::Loss | EventKind::Health => {}
        }
    }

    /// Whether this accept is the first on its listener from an address that is not this host's.
    fn first_reach(&mut self, event: &Event) -> bool {
        let Some(peer) = event.peer else { return false };
        let stranger = (event.netns_cookie, event.transport, event.port);
        let reached = match event.key {
            Some(key) => self.known(key).is_some_and(|occupancy| occupancy.reached),
            None => self.reached.contains(&stranger),
        };
        if reached || self.is_own(peer.ip(), event.address) {
            return false;
        }
        match event.key {
            Some(key) => {
                if let Some(occupancy) = self.open.get_mut(&key) {
                    occupancy.reached = true;
                }
            }
            None => {
                if self.reached.len() >= REACHED {
                    self.reached.clear();
                }
                self.reached.insert(stranger);
            }
        }
        true
    }

    fn is_own(&mut self, peer: IpAddr, local: Option<IpAddr>) -> bool {
        Some(peer) == local || self.host.is_own_address(peer)
    }
}

/// `now`, or what was known of the same process before when it is gone by now.
fn fuller(now: Process, before: Option<Rc<Process>>) -> Rc<Process> {
    match before {
        Some(before) if before.pid == now.pid && now.exe.is_none() => before,
        _ => Rc::new(now),
    }
}

#[cfg(test)]
mod tests;
