//! One rule of the operator: what it is about, and what it says.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::values::{Address, Names, NetnsName, Network, Ports, UserName};
use crate::{
    model::{EventKind, Transport},
    registry::Status,
};

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Nobody hears of it.
    Ignore,
    /// A notice.
    Notice,
    /// A warning.
    Warning,
    /// Critical.
    Critical,
    /// The kernel refuses the bind.
    Deny,
}

impl Decision {
    /// The name in the configuration and in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Deny => "deny",
        }
    }
}

/// A rule. Of each list one must match; what is None matches anything.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Printed on what it decides.
    pub name: String,
    /// Why, likewise.
    pub reason: Option<String>,
    /// What it says.
    pub decision: Decision,
    pub(super) ports: Option<Vec<Ports>>,
    pub(super) transports: Option<Vec<Transport>>,
    pub(super) statuses: Option<Vec<Status>>,
    pub(super) events: Option<Vec<EventKind>>,
    pub(super) addresses: Option<Vec<Address>>,
    pub(super) peers: Option<Vec<Network>>,
    pub(super) exes: Option<Vec<Names>>,
    pub(super) users: Option<Vec<UserName>>,
    pub(super) units: Option<Vec<Names>>,
    pub(super) container: Option<bool>,
    pub(super) cgroups: Option<Vec<Names>>,
    pub(super) namespaces: Option<Vec<NetnsName>>,
}

/// What rules can be about. What is None is not known, and no condition on it matches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The event.
    pub event: Option<EventKind>,
    /// The port.
    pub port: Option<u16>,
    /// The transport.
    pub transport: Option<Transport>,
    /// The registry's word.
    pub status: Option<Status>,
    /// The local address.
    pub address: Option<IpAddr>,
    /// The other end's address.
    pub peer: Option<IpAddr>,
    /// Path of the executable.
    pub exe: Option<&'a str>,
    /// User id.
    pub uid: Option<u32>,
    /// The systemd unit.
    pub unit: Option<&'a str>,
    /// Whether it runs in a container.
    pub container: Option<bool>,
    /// The path in the cgroup v2 hierarchy.
    pub cgroup: Option<&'a str>,
    /// Inode of the network namespace.
    pub netns: Option<u64>,
    /// Whether that is the host's.
    pub host_netns: Option<bool>,
}

/// Whether one of the wanted is it.
fn any<T, F: Copy>(
    wanted: Option<&Vec<T>>,
    fact: Option<F>,
    is_it: impl Fn(&T, F) -> bool,
) -> bool {
    match (wanted, fact) {
        (None, _) => true,
        (Some(wanted), Some(fact)) => wanted.iter().any(|one| is_it(one, fact)),
        (Some(_), None) => false,
    }
}

impl Rule {
    /// Whether it is about an alert that says so. Without an event's port (a loss, the sensor's
    /// health) no rule is.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        let (Some(port), Some(transport), Some(status)) =
            (facts.port, facts.transport, facts.status)
        else {
            return false;
        };
        self.covers(port, transport, status)
            && any(self.events.as_ref(), facts.event, |one, event| {
                *one == event
            })
            && any(self.addresses.as_ref(), facts.address, |one, address| {
                one.is(address)
            })
            && any(self.peers.as_ref(), facts.peer, |one, peer| one.has(peer))
            && any(self.exes.as_ref(), facts.exe, |one, exe| one.are(exe))
            && any(self.users.as_ref(), facts.uid, |one, uid| one.uid == uid)
            && any(self.units.as_ref(), facts.unit, |one, unit| one.are(unit))
            && self
                .container
                .is_none_or(|wanted| facts.container == Some(wanted))
            && any(self.cgroups.as_ref(), facts.cgroup, |one, cgroup| {
                one.are_or_hold(cgroup)
            })
            && any(
                self.namespaces.as_ref(),
                facts
                    .netns
                    .map(|netns| (netns, facts.host_netns == Some(true))),
                |one, (netns, is_host)| one.is(netns, is_host),
            )
    }

    /// Whether it is about that port at all. A rule that names neither ports nor statuses is about
    /// what is not assigned.
    #[must_use]
    pub fn covers(&self, port: u16, transport: Transport, status: Status) -> bool {
        let by_status = match &self.statuses {
            Some(statuses) => statuses.contains(&status),
            None => self.ports.is_some() || status != Status::Assigned,
        };
        by_status
            && any(self.ports.as_ref(), Some(port), |one, port| one.has(port))
            && any(self.transports.as_ref(), Some(transport), |one, it| {
                *one == it
            })
    }

    /// Whether nothing but the port decides whether it matches.
    #[must_use]
    pub const fn is_about_ports_only(&self) -> bool {
        self.events.is_none()
            && self.kernel_cannot_tell().is_none()
            && self.users.is_none()
            && self.cgroups.is_none()
    }

    /// The first of its conditions that is not known when the kernel decides on a bind.
    #[must_use]
    pub(super) const fn kernel_cannot_tell(&self) -> Option<&'static str> {
        if self.addresses.is_some() {
            Some("address")
        } else if self.peers.is_some() {
            Some("peer")
        } else if self.exes.is_some() {
            Some("exe")
        } else if self.units.is_some() {
            Some("unit")
        } else if self.container.is_some() {
            Some("container")
        } else if self.namespaces.is_some() {
            Some("netns")
        } else {
            None
        }
    }

    /// Whether it can be about a bind.
    pub(super) fn is_about_binds(&self) -> bool {
        self.events.as_ref().is_none_or(|events| {
            events.contains(&EventKind::Bind) || events.contains(&EventKind::Deny)
        })
    }
}
