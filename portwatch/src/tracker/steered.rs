//! Accepts that no listener on their port has made, or none with a mark, which its accepted sockets
//! would have inherited. `sk_lookup` programs and TPROXY deliver connections to a
//! listener elsewhere. A scan shows who has the accepted socket; until then the accept waits.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    rc::Rc,
};

use jiff::{SignedDuration, Timestamp};

use super::{Host, TrackedEvent, Tracker, holders::Found};
use crate::{
    inventory::FoundSocket,
    model::{Event, EventKind, PortKey, SocketKey},
    process::Process,
    util::Bounded,
};

/// Accepts that wait, some 300 bytes each; further ones are reported without a process.
const WAITING: usize = 1024;

/// Accepted sockets that are remembered, 8 bytes each: a scan is not to take them for outgoing.
const ACCEPTED: usize = 4096;

/// Ports whose server is remembered.
const SERVERS: usize = 256;

/// How long an accept waits until its program calls accept(2): before, nobody has the socket.
const PATIENCE: SignedDuration = SignedDuration::from_millis(500);

/// How long the process that serves a port is taken for unchanged: a busy one is not to cause a scan
/// for each connection.
const SERVER_LIFETIME: SignedDuration = SignedDuration::from_secs(1);

/// Where connections arrive: cookie of the network namespace, port and local address.
type Place = (Option<u64>, PortKey, Option<IpAddr>);

/// Who had the last socket that was accepted at a place open.
#[derive(Clone)]
pub(super) struct Server {
    /// When a scan showed it.
    time: Timestamp,
    pub(super) netns: u64,
    holders: Vec<Rc<Process>>,
    omitted: u32,
}

impl Server {
    pub(super) fn found(&self) -> Found<'_> {
        Found {
            holders: &self.holders,
            omitted: self.omitted,
        }
    }
}

/// Accepts without a listener on their port.
pub(super) struct Steered {
    /// In order, with the number of scans that had begun.
    waiting: Vec<(u64, Event)>,
    /// The cookies of accepted sockets.
    accepted: Bounded<u64, ()>,
    servers: Bounded<Place, Server>,
}

impl Default for Steered {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            accepted: Bounded::new(ACCEPTED),
            servers: Bounded::new(SERVERS),
        }
    }
}

impl Steered {
    /// Whether a scan should begin at once.
    pub(super) const fn waits_for_scan(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// The accepted sockets that a scan shows, by their cookies.
pub(super) type Accepted = HashMap<u64, Server>;

impl<H: Host> Tracker<H> {
    /// The accepted sockets whose holders a scan is to show, by their cookies.
    pub fn waiting_accepts(&self) -> HashSet<u64> {
        let waiting = self.steered.waiting.iter();
        waiting.filter_map(|(_, event)| event.accepted).collect()
    }

    /// Keeps an accept that only a scan can attribute; gives any other event back.
    pub(super) fn defer_steered(
        &mut self,
        mut event: Event,
        out: &mut Vec<TrackedEvent>,
    ) -> Option<Event> {
        let Some(accepted) = event.accepted else {
            return Some(event);
        };
        self.steered.accepted.put(accepted, ());
        if self.has_listener(&event) {
            return Some(event);
        }
        // Without its cookie, the namespace is not known, and another's server can be at that place.
        let is_certain = event.netns_cookie.is_some();
        let server = self.steered.servers.get(&place(&event)).cloned();
        let server = server.filter(|_| is_certain);
        let is_current = |server: &Server| event.time.duration_since(server.time) < SERVER_LIFETIME;
        if let Some(server) = server.filter(is_current) {
            event.netns = Some(server.netns);
            self.apply(&event, Some(server.found()), out);
            return None;
        }
        if self.steered.waiting.len() >= WAITING {
            return Some(event);
        }
        self.steered.waiting.push((self.table.round, event));
        None
    }

    /// Who had the last socket that was accepted there without a listener open.
    pub(super) fn server_of(&mut self, event: &Event) -> Option<Server> {
        self.steered.servers.get(&place(event)).cloned()
    }

    /// Whether a listener is tracked that can have accepted it, in this very namespace.
    fn has_listener(&mut self, event: &Event) -> bool {
        let cookie = event.netns_cookie;
        let netns = cookie.and_then(|cookie| self.host.netns(cookie, None));
        let is_certain = netns.is_some() || cookie.is_none();
        is_certain
            && self
                .table
                .unmarked_listener_at(event.port_key(), event.address, netns, event.time)
                .is_some()
    }

    /// Takes the sockets that were accepted without a listener out of a scan: they are no outgoing
    /// connections.
    pub(super) fn take_accepted(&mut self, found: &mut Vec<FoundSocket>) -> Accepted {
        let mut accepted = Accepted::new();
        found.retain(|socket| {
            let cookie = socket.event.key.and_then(SocketKey::cookie);
            let cookie = cookie.filter(|cookie| {
                socket.event.kind == EventKind::Connect
                    && self.steered.accepted.get(cookie).is_some()
            });
            if let Some(cookie) = cookie {
                let server = Server {
                    time: socket.event.time,
                    netns: socket.netns,
                    holders: socket.holders.clone(),
                    omitted: socket.holders_omitted,
                };
                accepted.insert(cookie, server);
            }
            cookie.is_none()
        });
        accepted
    }

    /// Reports the accepts that waited for this scan, with the holders that it shows.
    pub(super) fn attribute_steered(&mut self, accepted: &Accepted, out: &mut Vec<TrackedEvent>) {
        let now = Timestamp::now();
        let round = self.table.round;
        for (begun, mut event) in std::mem::take(&mut self.steered.waiting) {
            let found = event.accepted.and_then(|cookie| accepted.get(&cookie));
            if let Some(server) = found.filter(|server| !server.holders.is_empty()) {
                event.netns = Some(server.netns);
                let current = Server {
                    time: now,
                    ..server.clone()
                };
                self.steered.servers.put(place(&event), current);
                self.apply(&event, Some(server.found()), out);
                continue;
            }
            // A scan that began before the accept need not show its socket.
            let is_over = begun < round && now.duration_since(event.time) >= PATIENCE;
            if is_over || self.has_listener(&event) {
                self.apply(&event, None, out);
            } else {
                self.steered.waiting.push((begun, event));
            }
        }
    }

    /// Adds everything that waits: no scan will come.
    pub(super) fn abandon_steered(&mut self, out: &mut Vec<TrackedEvent>) {
        for (_, event) in std::mem::take(&mut self.steered.waiting) {
            self.apply(&event, None, out);
        }
    }
}

const fn place(event: &Event) -> Place {
    (event.netns_cookie, event.port_key(), event.address)
}
