//! What the operator reads. The JSON form is described by docs/alert.schema.json.

use std::{collections::BTreeMap, fmt, net::IpAddr, rc::Rc};

use jiff::{Timestamp, civil::Date};
use serde::{Serialize, Serializer};

use crate::{
    model::{EventKind, Printable, Severity, Transport},
    policy::{Decision, Facts},
    process::{Container, Process},
    registry::{Basis, Entry, Status},
};

/// How portwatch came to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The kernel reported it as it happened.
    Live,
    /// It was found to be so: before the monitor was there, or after reports were lost.
    Snapshot,
}

impl Origin {
    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Snapshot => "snapshot",
        }
    }
}

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

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its address; an IPv4-mapped one is given as IPv4.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// The registry's word, as an alert quotes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegistryEntry {
    /// The status.
    pub status: Status,
    /// The ports of the registry's row, `954-988`, when that names more than one.
    pub range: Option<String>,
    /// The first service name, if there is one.
    pub service: Option<Printable>,
    /// Whether a row or a rule says so.
    pub basis: Basis,
    /// The registry's date.
    pub as_of: Option<Date>,
}

impl RegistryEntry {
    /// The parts of `entry` that an alert shows.
    #[must_use]
    pub fn new(entry: &Entry, as_of: Option<Date>) -> Self {
        Self {
            status: entry.status,
            range: entry.range.map(|(first, last)| format!("{first}-{last}")),
            service: entry.services.first().cloned(),
            basis: entry.basis,
            as_of,
        }
    }
}

impl fmt::Display for RegistryEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.name())?;
        let mut details: Vec<String> = Vec::new();
        details.extend(self.service.as_ref().map(ToString::to_string));
        details.extend(self.range.clone());
        if self.basis == Basis::OtherTransport {
            details.push("RFC 6335 7.2".into());
        }
        details.extend(self.as_of.map(|date| format!("IANA {date}")));
        if details.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", details.join(", "))
    }
}

/// The socket that the alert is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Socket {
    /// Its cookie: the same in all alerts about it. An accept has its listener's.
    pub cookie: Option<u64>,
    /// Inode of its network namespace, as `/proc/PID/ns/net` shows it.
    pub netns: Option<u64>,
    /// Whether that is the namespace of the host's first process.
    pub host_netns: Option<bool>,
    /// Whether it is the kernel's own: no process has it, `process` is None.
    pub kernel: Option<bool>,
}

/// A process that has the socket open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its name.
    pub comm: Printable,
    /// The executable's path.
    pub exe: Option<Printable>,
    /// The user's name, or else the number.
    pub user: Printable,
    /// The systemd unit.
    pub unit: Option<Printable>,
    /// The container.
    pub container: Option<Container>,
}

impl From<&Process> for Holder {
    fn from(process: &Process) -> Self {
        Self {
            pid: process.pid,
            comm: process.comm.clone(),
            exe: process.exe.clone(),
            user: process
                .user
                .clone()
                .unwrap_or_else(|| Printable::from(process.uid.to_string().as_str())),
            unit: process.unit.clone(),
            container: process.container.clone(),
        }
    }
}

/// The rule that decided, as an alert quotes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleInfo {
    /// Its name.
    pub name: Printable,
    /// Why it is there.
    pub reason: Option<Printable>,
    /// What it says.
    pub decision: Decision,
    /// Whether a `deny` is only tried out.
    pub dry_run: bool,
}

/// The connections to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Accepts {
    /// All of them.
    pub count: u64,
    /// From how many addresses, 4,096 at most.
    pub peers: u64,
}

/// What happened often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// When the first of it happened.
    #[serde(serialize_with = "nanoseconds")]
    pub since: Timestamp,
    /// How often, by event.
    pub counts: BTreeMap<&'static str, u64>,
    /// On which ports, by transport: `1-3,954-988`.
    pub ports: BTreeMap<&'static str, String>,
    /// Which of all that it took are still held now, likewise.
    pub held: BTreeMap<&'static str, String>,
}

/// One line for the operator. What is not known is None, never guessed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Version of this form.
    pub schema: u32,
    /// When it happened, by the host's clock.
    #[serde(serialize_with = "nanoseconds")]
    pub time: Timestamp,
    /// The host's name.
    pub host: Printable,
    /// What happened.
    pub event: EventKind,
    /// How much it matters.
    pub severity: Severity,
    /// How portwatch came to know.
    pub origin: Origin,
    /// The port; None on a loss.
    pub port: Option<u16>,
    /// The transport; None on a loss.
    pub transport: Option<Transport>,
    /// The IP version of `address`.
    pub family: Option<Family>,
    /// The local address.
    pub address: Option<IpAddr>,
    /// The other end, on accept and connect.
    pub peer: Option<Peer>,
    /// The registry's word on (port, transport).
    pub registry: Option<Rc<RegistryEntry>>,
    /// The socket.
    pub socket: Socket,
    /// When the socket took the port; None where it was there before.
    #[serde(serialize_with = "maybe_nanoseconds")]
    pub since: Option<Timestamp>,
    /// Who did it; on accept and close, who took the port; in a snapshot, the oldest holder.
    #[serde(serialize_with = "once_as_json")]
    pub process: Option<Rc<Process>>,
    /// The processes that had the socket open when that was last looked at.
    pub holders: Rc<[Holder]>,
    /// The rule that decided; None without one.
    pub rule: Option<RuleInfo>,
    /// On a close, the connections that there were; None without any.
    pub accepts: Option<Accepts>,
    /// On a summary, what it sums up.
    pub summary: Option<Summary>,
    /// On a loss, how many reports were lost.
    pub lost: Option<u64>,
    /// On a health alert, what happened, for people.
    pub detail: Option<Printable>,
}

/// The value of [`Alert::schema`].
pub const SCHEMA: u32 = 1;

impl Alert {
    /// The alert for `count` reports that found the ring full.
    #[must_use]
    pub fn loss(count: u64, host: Printable) -> Self {
        Self {
            lost: Some(count),
            ..Self::of_the_monitor(EventKind::Loss, Severity::Warning, host)
        }
    }

    /// The alert for a part of the sensor that was lost or regained.
    #[must_use]
    pub fn health(severity: Severity, detail: Printable, host: Printable) -> Self {
        Self {
            detail: Some(detail),
            ..Self::of_the_monitor(EventKind::Health, severity, host)
        }
    }

    /// The alert for what was not told one by one.
    #[must_use]
    pub fn summary(summary: Summary, severity: Severity, host: Printable) -> Self {
        Self {
            summary: Some(summary),
            ..Self::of_the_monitor(EventKind::Summary, severity, host)
        }
    }

    /// What rules can depend on.
    #[must_use]
    pub fn facts(&self) -> Facts<'_> {
        let process = self.process.as_deref();
        Facts {
            event: Some(self.event),
            port: self.port,
            transport: self.transport,
            status: self.registry.as_ref().map(|entry| entry.status),
            address: self.address,
            peer: self.peer.map(|peer| peer.address),
            exe: process.and_then(|process| process.exe.as_deref()),
            uid: process.map(|process| process.uid),
            unit: process.and_then(|process| process.unit.as_deref()),
            container: process.map(|process| process.container.is_some()),
            cgroup: process.and_then(|process| process.cgroup.as_deref()),
            netns: self.socket.netns,
            host_netns: self.socket.host_netns,
        }
    }

    /// An alert that is about no socket.
    fn of_the_monitor(event: EventKind, severity: Severity, host: Printable) -> Self {
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
            rule: None,
            accepts: None,
            summary: None,
            lost: None,
            detail: None,
        }
    }
}

/// RFC 3339 in UTC with all nine digits, so that lines sort as text.
fn nanoseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.9}"))
}

/// As the process keeps it.
fn once_as_json<S: Serializer>(
    process: &Option<Rc<Process>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    process
        .as_ref()
        .and_then(|process| process.json())
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
