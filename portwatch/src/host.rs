//! What the occupancies ask of the machine they run on; tests ask another one.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::ifaddrs::getifaddrs;

use crate::{
    event::Task,
    process::{Namespaces, Process, Processes},
};

/// The machine, as far as events do not carry it.
pub trait Host {
    /// Who `task` is, as far as it can still be seen.
    fn identify(&mut self, task: &Task) -> Process;

    /// The inode of the network namespace with that cookie, which thread `tid` is probably in.
    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64>;

    /// Whether `address` is one of this host's own.
    fn is_own_address(&mut self, address: IpAddr) -> bool;
}

/// This machine.
#[derive(Debug, Default)]
pub struct ThisHost {
    processes: Processes,
    namespaces: Namespaces,
    addresses: Vec<IpAddr>,
    read_at: Option<Instant>,
}

/// How long the host's addresses are taken for unchanged.
const ADDRESSES_ARE_GOOD_FOR: Duration = Duration::from_secs(1);

impl Host for ThisHost {
    fn identify(&mut self, task: &Task) -> Process {
        self.processes.identify(task)
    }

    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        self.namespaces.inode(cookie, tid)
    }

    fn is_own_address(&mut self, address: IpAddr) -> bool {
        if address.is_loopback() {
            return true;
        }
        if self
            .read_at
            .is_none_or(|at| at.elapsed() > ADDRESSES_ARE_GOOD_FOR)
        {
            self.addresses = own_addresses();
            self.read_at = Some(Instant::now());
        }
        self.addresses.contains(&address)
    }
}

/// The addresses of the agent's network namespace.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect()
}
