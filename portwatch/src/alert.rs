//! The wire record. docs/alert.schema.json describes its JSON form.
#![forbid(unsafe_code)]

mod session;
mod summary;

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

#[cfg(test)]
pub(crate) use self::summary::SummaryProcess;
pub use self::{session::SessionInfo, summary::SummaryInfo};
use crate::{
    aggregate::Accepts,
    decide::{Decided, RuleInfo},
    model::{
        ConnectOutcome, Direction, EventKind, Origin, Printable, Received, Sessions, Severity,
        SocketKey, Transport,
    },
    process::Process,
    registry::RegistryInfo,
    tracker::Holder,
};

/// The IP version of the addresses in an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4, also when it came through an IPv6 socket.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::Ipv4
        } else {
            Self::Ipv6
        }
    }
}

/// The remote end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its address; an IPv4-mapped one is given as IPv4.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// The socket that an alert is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Socket {
    /// Its cookie: the same in all alerts about it. An accept has its listener's.
    pub cookie: Option<u64>,
    /// Inode of its network namespace, as `/proc/PID/ns/net` shows it.
    pub netns: Option<u64>,
    /// Whether that is the namespace of the host's first process.
    pub host_netns: Option<bool>,
    /// Whether it is a kernel socket: no process has it, `process` is None.
    pub kernel: Option<bool>,
}

/// One line for the operator. What is not known is None, never guessed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Version of this format.
    pub schema: u32,
    /// When it happened, by the host's clock.
    #[serde(serialize_with = "nanoseconds")]
    pub time: Timestamp,
    /// The host's name.
    pub host: Printable,
    /// The kind of event.
    pub event: EventKind,
    /// How much it matters.
    pub severity: Severity,
    /// How it became known.
    pub origin: Origin,
    /// The port; None where the alert is about none or several.
    pub port: Option<u16>,
    /// The transport; None where `port` is.
    pub transport: Option<Transport>,
    /// The IP version of `address`.
    pub family: Option<Family>,
    /// The local address.
    pub address: Option<IpAddr>,
    /// The remote end, on accept, connect and session; the sender, on receive.
    pub peer: Option<Peer>,
    /// The registry's entry for the port.
    pub registry: Option<Rc<RegistryInfo>>,
    /// The socket.
    pub socket: Socket,
    /// When the socket took the port; None where it was there before.
    #[serde(serialize_with = "maybe_nanoseconds")]
    pub since: Option<Timestamp>,
    /// The binder or listener; on accept and close, the socket's owner; in a scan, the oldest holder.
    #[serde(serialize_with = "cached_json")]
    pub process: Option<Rc<Process>>,
    /// The processes that had the socket open at the last scan.
    pub holders: Rc<[Holder]>,
    /// How many more there are.
    pub holders_omitted: u32,
    /// The rule that decided; None without one.
    pub rule: Option<RuleInfo>,
    /// On a listener's close, its connections; None without any.
    pub accepts: Option<Accepts>,
    /// On a close, how the socket's last outgoing connection ended; None without one, and where it
    /// is unknown.
    pub outcome: Option<ConnectOutcome>,
    /// On a summary, what was counted.
    pub summary: Option<SummaryInfo>,
    /// On a loss, how many reports were lost.
    pub lost: Option<u64>,
    /// On a health alert, what happened.
    pub detail: Option<Printable>,
    /// On a close, the datagrams that the socket has received; None where none was seen.
    pub received: Option<Received>,
    /// Of a connection: which end is on the port. None when unknown, and on other events.
    pub direction: Option<Direction>,
    /// On a close, the connections of the socket; None without any.
    pub sessions: Option<Sessions>,
    /// On a session, how it went.
    pub session: Option<SessionInfo>,
    /// The device that the socket is bound to, by its name in the socket's network namespace. None
    /// without one, and where it is unknown.
    pub device: Option<Printable>,
    /// Of an IPv6 wildcard: whether it takes no IPv4. None for others, and where it is unknown.
    pub v6only: Option<bool>,
}

impl Alert {
    /// The local address and port, a link-local one with the scope that it is valid in.
    #[must_use]
    pub fn local(&self) -> Option<String> {
        let port = self.port?;
        let Some(address) = self.address else {
            return Some(format!("port {port}"));
        };
        Some(local(address, port, self.device.as_deref()))
    }
}

/// An address and port; a link-local one with its scope, `[fe80::1%eth0]:976`.
#[must_use]
pub fn local(address: IpAddr, port: u16, device: Option<&str>) -> String {
    match (address, device) {
        (IpAddr::V6(v6), Some(device)) if v6.is_unicast_link_local() => {
            format!("[{v6}%{device}]:{port}")
        }
        _ => SocketAddr::new(address, port).to_string(),
    }
}

/// Bytes of [`Alert::detail`] in JSON.
const MAX_DETAIL: usize = 1024;

/// The value of [`Alert::schema`].
pub const SCHEMA: u32 = 1;

impl Alert {
    /// The alert for an event.
    #[must_use]
    pub fn of_event(decided: Decided, accepts: Option<Accepts>, host: Printable) -> Self {
        let Decided {
            event,
            registry,
            severity,
            rule,
            detail,
            sessions,
            ..
        } = decided;
        Self {
            schema: SCHEMA,
            time: event.time,
            host,
            event: event.kind,
            severity,
            origin: event.origin,
            port: Some(event.port_key.port),
            transport: Some(event.port_key.transport),
            family: event.address.map(Family::from),
            address: event.address,
            peer: event.peer.map(|peer| Peer {
                address: peer.ip(),
                port: peer.port(),
            }),
            registry,
            socket: Socket {
                cookie: event.key.and_then(SocketKey::cookie),
                netns: event.netns,
                host_netns: event.is_host_netns,
                kernel: event.is_kernel_socket,
            },
            since: event.since,
            process: event.process,
            holders: event.holders.list,
            holders_omitted: event.holders.omitted,
            rule,
            accepts,
            outcome: event.outcome,
            summary: None,
            lost: None,
            detail: detail.map(Printable::from),
            received: event.received,
            direction: event.direction,
            sessions,
            session: event
                .session
                .map(|session| SessionInfo::of(&session, event.time)),
            device: event.device,
            v6only: event.v6only,
        }
    }

    /// The alert for `count` reports that found the ring buffer full.
    #[must_use]
    pub fn loss(count: u64, host: Printable) -> Self {
        Self {
            lost: Some(count),
            ..Self::of_monitor(EventKind::Loss, Severity::Warning, host)
        }
    }

    /// The alert for a part of the monitor that was lost or restored.
    #[must_use]
    pub fn health(severity: Severity, detail: &str, host: Printable) -> Self {
        Self {
            detail: Some(Printable::limited(detail.as_bytes(), MAX_DETAIL)),
            ..Self::of_monitor(EventKind::Health, severity, host)
        }
    }

    /// An alert that is about no socket.
    fn of_monitor(event: EventKind, severity: Severity, host: Printable) -> Self {
        Self {
            schema: SCHEMA,
            time: Timestamp::now(),
            host,
            event,
            severity,
            origin: Origin::Live,
            port: None,
            transport: None,
            family: None,
            address: None,
            peer: None,
            registry: None,
            socket: Socket::default(),
            since: None,
            process: None,
            holders: Rc::default(),
            holders_omitted: 0,
            rule: None,
            accepts: None,
            outcome: None,
            summary: None,
            lost: None,
            detail: None,
            received: None,
            direction: None,
            sessions: None,
            session: None,
            device: None,
            v6only: None,
        }
    }
}

/// RFC 3339 in UTC with all nine digits, so that lines sort as text.
fn nanoseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.9}"))
}

/// As the process caches it.
fn cached_json<S: Serializer>(
    process: &Option<Rc<Process>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    process
        .as_ref()
        .and_then(|process| process.json())
        .as_deref()
        .serialize(serializer)
}

/// As [`nanoseconds`].
fn maybe_nanoseconds<S: Serializer>(
    time: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => nanoseconds(time, serializer),
        None => serializer.serialize_none(),
    }
}
