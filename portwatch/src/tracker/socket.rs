//! A tracked socket, and what the tracker says of it.
#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    crowd::Crowd,
    holders::{Found, Holder, Holders},
};
use crate::{
    model::{
        CloseKind, ConnectOutcome, Direction, Event, EventKind, Origin, PortKey, Printable,
        Received, Session, SocketKey,
    },
    process::Process,
};

/// What stays open for so long lasts, and is reported by itself.
pub const LASTING: SignedDuration =
    SignedDuration::from_nanos(portwatch_common::protocol::LASTING_NS as i64);

/// How far a socket has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Bound and nothing else.
    Bound,
    /// Listening.
    Listening,
    /// Connected, or connecting, outwards.
    Connected,
}

impl Stage {
    /// The stage that an event of that kind leads to; None for one that changes none.
    pub(super) const fn after(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::Bind => Some(Self::Bound),
            EventKind::Listen => Some(Self::Listening),
            EventKind::Connect => Some(Self::Connected),
            _ => None,
        }
    }
}

/// A socket on a watched port, from bind to close.
#[derive(Clone, Debug)]
pub struct TrackedSocket {
    /// Its port.
    pub port_key: PortKey,
    /// Its local address.
    pub address: Option<IpAddr>,
    /// How far it has come.
    pub stage: Stage,
    /// How it first became known.
    pub(super) origin: Origin,
    /// When it took the port.
    pub(super) since: Option<Timestamp>,
    /// Its owner: who bound it, or listened last.
    pub process: Option<Rc<Process>>,
    /// Who had it open when a scan last saw it.
    pub(super) holders: Holders,
    /// Inode of its network namespace.
    pub netns: Option<u64>,
    pub(super) is_kernel_socket: Option<bool>,
    /// Whether the BPF programs report its close.
    pub(super) marked: bool,
    /// Whether marking it was tried.
    pub(super) tried: bool,
    /// Whether a remote host has connected to it.
    pub(super) reached: bool,
    /// Whether it was shut down, which was reported as its close, and may still have its port.
    pub(super) shut_down: bool,
    /// Whether the last scan should have shown it and did not.
    pub(super) absent_once: bool,
    /// How many scans had begun at its last event.
    pub(super) round: u64,
    /// When a scan last looked for its holders.
    pub(super) holders_at: Option<Timestamp>,
    /// The datagrams that it has received, as far as they were seen.
    pub received: Option<Received>,
    /// The index of the device that it was bound to when it was last reported; 0 for none.
    pub(super) interface: u32,
    /// The device that it is bound to.
    pub(super) device: Option<Printable>,
    /// Of an IPv6 wildcard: whether it takes no IPv4.
    pub(super) v6only: Option<bool>,
    /// Whose it is, since it took the port.
    pub(super) crowd: Option<Rc<Crowd>>,
    /// Whether it is counted only.
    pub(super) is_crowded: bool,
}

impl TrackedSocket {
    pub(crate) fn new(port_key: PortKey) -> Self {
        Self {
            port_key,
            address: None,
            stage: Stage::Bound,
            origin: Origin::Live,
            since: None,
            process: None,
            holders: Holders::default(),
            netns: None,
            is_kernel_socket: None,
            marked: true,
            tried: false,
            reached: false,
            shut_down: false,
            absent_once: false,
            round: 0,
            holders_at: None,
            received: None,
            interface: 0,
            device: None,
            v6only: None,
            crowd: None,
            is_crowded: false,
        }
    }

    /// Whether it should be marked, and that was not tried.
    pub(super) fn is_to_mark(&self) -> bool {
        !self.marked && !self.tried && !self.holders.is_empty()
    }

    /// Whether it can be the socket at that port, address and namespace; None matches any.
    pub(super) fn is_at(
        &self,
        port_key: PortKey,
        address: Option<IpAddr>,
        netns: Option<u64>,
    ) -> bool {
        self.port_key == port_key
            && (self.netns == netns || netns.is_none() || self.netns.is_none())
            && (self.address == address
                || address.is_none()
                || self.address.is_none_or(|own| own.is_unspecified()))
    }

    /// Whether it had been open for [`LASTING`] at that time. A socket that is not tracked (its bind
    /// was counted) did not: what lasts is tracked.
    fn lasted(&self, time: Timestamp) -> bool {
        self.origin == Origin::Snapshot
            || self
                .since
                .is_some_and(|since| time.duration_since(since) >= LASTING)
    }

    /// The event of `kind` at `time`, as the BPF programs would report it, without task.
    pub(super) fn event(&self, key: SocketKey, kind: EventKind, time: Timestamp) -> Event {
        Event {
            kind,
            time,
            key: Some(key),
            netns_cookie: None,
            netns: self.netns,
            transport: self.port_key.transport,
            address: self.address,
            port: self.port_key.port,
            peer: None,
            task: None,
            is_kernel_socket: self.is_kernel_socket,
            binder: None,
            outcome: None,
            accepted: None,
            close: CloseKind::Released,
            is_from_host: false,
            direction: None,
            session: None,
            interface: None,
            device: self.device.clone(),
            v6only: self.v6only,
        }
    }

    /// About how many bytes of memory it takes, with records that others can share.
    pub(super) fn bytes(&self) -> usize {
        let process = self.process.as_ref().map_or(0, |process| process.bytes());
        let holders: usize = self.holders.list.iter().map(Holder::json_bytes).sum();
        size_of::<Self>() + process + holders
    }

    /// Notes who has it open by a scan.
    pub(super) fn set_holders(&mut self, found: Found<'_>) {
        let all = found.holders.iter().map(|one| Holder::from(&**one));
        let holders = Holders::new(all, found.omitted);
        // Most of the time it is the same, and the texts are in memory once.
        if self.holders != holders {
            self.holders = holders;
        }
    }
}

/// An event, joined with the socket that it is about.
#[derive(Clone, Debug)]
pub struct TrackedEvent {
    /// The kind.
    pub kind: EventKind,
    /// By the host's clock.
    pub time: Timestamp,
    /// How it became known.
    pub origin: Origin,
    /// Identifies the socket; on an accept, the listener.
    pub key: Option<SocketKey>,
    /// The local port.
    pub port_key: PortKey,
    /// The local address.
    pub address: Option<IpAddr>,
    /// The remote end of an accept, connect or session.
    pub peer: Option<SocketAddr>,
    /// Inode of the socket's network namespace.
    pub netns: Option<u64>,
    /// Whether that is the namespace of the host's first process.
    pub is_host_netns: Option<bool>,
    /// Whether it is a kernel socket.
    pub is_kernel_socket: Option<bool>,
    /// When the socket took the port; None where it was there before.
    pub since: Option<Timestamp>,
    /// The binder or listener; on accept and close, the socket's owner; in a scan, the oldest holder.
    pub process: Option<Rc<Process>>,
    /// The processes that had the socket open at the last scan.
    pub holders: Holders,
    /// On an accept or receive: whether it is the first from a remote host.
    pub is_first_remote: bool,
    /// On a close: how the socket's last outgoing connection ended.
    pub outcome: Option<ConnectOutcome>,
    /// On a close: whether the socket had been open for [`LASTING`].
    pub lasted: bool,
    /// On a close: the datagrams that the socket has received, as far as they were seen.
    pub received: Option<Received>,
    /// Of a connection: which end is on the port. None when unknown, and on other events.
    pub direction: Option<Direction>,
    /// On a session, how it went.
    pub session: Option<Session>,
    /// The device that the socket is bound to, by its name in the socket's network namespace.
    pub device: Option<Printable>,
    /// Of an IPv6 wildcard: whether it takes no IPv4. None for others, and where it is unknown.
    pub v6only: Option<bool>,
    /// Whether the socket is one of too many of its program on the port: it is counted only.
    pub is_crowded: bool,
}

impl TrackedEvent {
    pub(super) fn new(
        event: &Event,
        socket: &TrackedSocket,
        key: Option<SocketKey>,
        origin: Origin,
        host_netns: Option<u64>,
    ) -> Self {
        Self {
            kind: event.kind,
            time: event.time,
            origin,
            key,
            port_key: event.port_key(),
            address: event.address,
            peer: event.peer,
            netns: socket.netns,
            is_host_netns: socket.netns.zip(host_netns).map(|(its, host)| its == host),
            is_kernel_socket: socket.is_kernel_socket,
            since: socket.since,
            process: socket.process.clone(),
            holders: socket.holders.clone(),
            is_first_remote: false,
            outcome: event.outcome,
            lasted: event.kind == EventKind::Close && socket.lasted(event.time),
            received: socket.received.filter(|_| event.kind == EventKind::Close),
            direction: match (event.kind, origin) {
                (EventKind::Accept, _) => Some(Direction::In),
                (EventKind::Connect, Origin::Live) => Some(Direction::Out),
                (EventKind::Connect, Origin::Snapshot) => event.direction,
                _ => event.session.map(|session| session.direction),
            },
            session: event.session,
            device: socket.device.clone(),
            v6only: socket.v6only,
            is_crowded: socket.is_crowded,
        }
    }

    /// Whether the socket took the port with this event.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.since == Some(self.time)
    }
}
