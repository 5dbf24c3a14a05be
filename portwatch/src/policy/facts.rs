//! What rules can depend on.

use std::net::IpAddr;

use crate::{
    model::{EventKind, Transport},
    registry::Status,
};

/// What rules can depend on. None is unknown, and satisfies no condition.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The event.
    pub event: Option<EventKind>,
    /// The local port.
    pub port: Option<u16>,
    /// The transport.
    pub transport: Option<Transport>,
    /// The status in the registry.
    pub status: Option<Status>,
    /// The local address.
    pub address: Option<IpAddr>,
    /// The address of the other end.
    pub peer: Option<IpAddr>,
    /// Path of the executable, if the host knows it by that path.
    pub exe: Option<&'a str>,
    /// Real user id in the initial user namespace.
    pub uid: Option<u32>,
    /// The innermost systemd unit that is certain.
    pub unit: Option<&'a str>,
    /// Whether the process runs in a container; None when that is only claimed.
    pub container: Option<bool>,
    /// The part of the cgroup's path in the v2 hierarchy that root chose.
    pub cgroup: Option<&'a str>,
    /// Inode of the network namespace.
    pub netns: Option<u64>,
    /// Whether that is the host's.
    pub host_netns: Option<bool>,
    /// The device that the socket is bound to.
    pub device: Option<&'a str>,
    /// What the process claims.
    pub claims: Claims<'a>,
}

/// What stands only for itself: names that an unprivileged process can choose. They need not differ
/// from the facts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claims<'a> {
    /// Path of the executable, as the process's own mount namespace has it.
    pub exe: Option<&'a str>,
    /// The unit, by the name of the cgroup.
    pub unit: Option<&'a str>,
    /// Whether a cgroup is named like a container.
    pub container: Option<bool>,
    /// Path of the cgroup in the v2 hierarchy.
    pub cgroup: Option<&'a str>,
}
