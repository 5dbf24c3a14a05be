//! One condition of a rule: a key of the configuration and the values that satisfy it.

use super::{
    facts::{Claims, Facts},
    values::{Address, NamePattern, Netns, Network, PortRange, User},
};
use crate::{
    model::{EventKind, Transport},
    registry::Status,
};

/// A condition. It matches when one of its values does.
#[derive(Clone, Debug)]
pub enum Condition {
    /// The local port.
    Port(Vec<PortRange>),
    /// The transport.
    Transport(Vec<Transport>),
    /// The status in the registry.
    Status(Vec<Status>),
    /// The event.
    Event(Vec<EventKind>),
    /// The local address.
    Address(Vec<Address>),
    /// The address of the other end.
    Peer(Vec<Network>),
    /// Path of the executable: a claim unless the process is in the host's namespaces.
    Exe(Vec<NamePattern>),
    /// The real user.
    User(Vec<User>),
    /// The systemd unit.
    Unit(Vec<NamePattern>),
    /// Whether the process runs in a container.
    Container(bool),
    /// The cgroup's path below the root of the v2 hierarchy, or a parent's.
    Cgroup(Vec<NamePattern>),
    /// The network namespace.
    Netns(Vec<Netns>),
    /// The device that the socket is bound to, by its name in the socket's network namespace.
    Device(Vec<NamePattern>),
}

impl Condition {
    /// Its key in the configuration.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Port(_) => "port",
            Self::Transport(_) => "transport",
            Self::Status(_) => "status",
            Self::Event(_) => "event",
            Self::Address(_) => "address",
            Self::Peer(_) => "peer",
            Self::Exe(_) => "exe",
            Self::User(_) => "user",
            Self::Unit(_) => "unit",
            Self::Container(_) => "container",
            Self::Cgroup(_) => "cgroup",
            Self::Netns(_) => "netns",
            Self::Device(_) => "device",
        }
    }

    /// Whether `facts` satisfy it. An unknown fact satisfies no condition.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Port(ports) => any(ports, facts.port, |range, port| range.matches(port)),
            Self::Transport(transports) => any(transports, facts.transport, |one, it| *one == it),
            Self::Status(statuses) => any(statuses, facts.status, |one, it| *one == it),
            Self::Event(events) => any(events, facts.event, |one, it| *one == it),
            Self::Address(addresses) => any(addresses, facts.address, |one, it| one.matches(it)),
            Self::Peer(networks) => any(networks, facts.peer, |one, it| one.matches(it)),
            Self::Exe(paths) => any(paths, facts.exe, NamePattern::matches),
            Self::User(users) => any(users, facts.uid, |user, uid| user.uid == uid),
            Self::Unit(names) => any(names, facts.unit, NamePattern::matches),
            Self::Container(wanted) => facts.container == Some(*wanted),
            Self::Cgroup(paths) => any(paths, facts.cgroup, NamePattern::matches_or_contains),
            Self::Netns(namespaces) => any(namespaces, facts.netns, |one, inode| {
                one.matches(inode, facts.host_netns == Some(true))
            }),
            Self::Device(names) => any(names, facts.device, NamePattern::matches),
        }
    }

    /// Whether a process claims what would satisfy it.
    pub(super) fn matches_claim(&self, claims: &Claims<'_>) -> bool {
        match self {
            Self::Exe(paths) => any(paths, claims.exe, NamePattern::matches),
            Self::Unit(names) => any(names, claims.unit, NamePattern::matches),
            Self::Container(wanted) => claims.container == Some(*wanted),
            Self::Cgroup(paths) => any(paths, claims.cgroup, NamePattern::matches_or_contains),
            _ => false,
        }
    }

    /// Whether it can be satisfied by a claim.
    pub(super) const fn can_be_claimed(&self) -> bool {
        matches!(
            self,
            Self::Exe(_) | Self::Unit(_) | Self::Container(_) | Self::Cgroup(_)
        )
    }

    /// Whether the BPF programs can evaluate it at a bind.
    #[must_use]
    pub const fn kernel_can_check(&self) -> bool {
        match self {
            Self::Port(_)
            | Self::Transport(_)
            | Self::Status(_)
            // At a bind the event is a bind: rules about other events are not compiled.
            | Self::Event(_)
            | Self::User(_)
            | Self::Cgroup(_) => true,
            Self::Address(_)
            | Self::Peer(_)
            | Self::Exe(_)
            | Self::Unit(_)
            | Self::Container(_)
            | Self::Netns(_)
            | Self::Device(_) => false,
        }
    }

    /// Whether it depends on (port, transport) alone, given the registry.
    pub(super) const fn is_about_port(&self) -> bool {
        matches!(self, Self::Port(_) | Self::Transport(_) | Self::Status(_))
    }
}

fn any<T, F: Copy>(wanted: &[T], fact: Option<F>, matches: impl Fn(&T, F) -> bool) -> bool {
    fact.is_some_and(|fact| wanted.iter().any(|one| matches(one, fact)))
}
