//! What the tracker asks of the machine it runs on; tests provide another one.

use std::{
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::ifaddrs::getifaddrs;

use crate::{
    linux::{
        devices,
        netns::{Namespaces, inode_of},
    },
    model::{Printable, Task},
    process::{Process, Processes},
};

/// The machine, as far as events do not carry it. Called on the thread that reads the ring: each
/// call is bounded, and none walks /proc or asks a name service.
pub trait Host {
    /// The process of `task`, which acted at `time`, as far as it can still be seen.
    fn identify(&mut self, task: &Task, time: Timestamp) -> Rc<Process>;

    /// The process with that id that was identified last.
    fn last_identified(&mut self, pid: u32) -> Option<Rc<Process>>;

    /// The record with what was left out of it to save memory, as far as it can still be read.
    fn complete(&mut self, process: &Rc<Process>) -> Rc<Process>;

    /// Inode of the network namespace of the host's first process.
    fn host_netns(&mut self) -> Option<u64>;

    /// Inode of the network namespace with that cookie, which thread `tid` is probably in.
    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64>;

    /// Notes the inode of the network namespace with that cookie.
    fn cache_netns(&mut self, cookie: u64, inode: u64);

    /// Inode of the network namespace that thread `tid` is in.
    fn thread_netns(&mut self, tid: u32) -> Option<u64>;

    /// The name of a device in the network namespace with that inode, which thread `tid` is probably in.
    fn device(&mut self, netns: Option<u64>, index: u32, tid: Option<u32>) -> Option<Printable>;

    /// Whether `address` is one of this host's own.
    fn is_own_address(&mut self, address: IpAddr) -> bool;
}

/// This machine.
#[derive(Debug, Default)]
pub struct ThisHost {
    processes: Processes,
    namespaces: Namespaces,
    host_netns: Option<u64>,
    addresses: Vec<IpAddr>,
    addresses_at: Option<Instant>,
}

/// How long the host's addresses are taken for unchanged.
const ADDRESSES_LIFETIME: Duration = Duration::from_secs(1);

impl Host for ThisHost {
    fn identify(&mut self, task: &Task, time: Timestamp) -> Rc<Process> {
        self.processes.identify(task, time)
    }

    fn last_identified(&mut self, pid: u32) -> Option<Rc<Process>> {
        self.processes.last_identified(pid)
    }

    fn complete(&mut self, process: &Rc<Process>) -> Rc<Process> {
        self.processes.complete(process)
    }

    fn host_netns(&mut self) -> Option<u64> {
        if self.host_netns.is_none() {
            // Kernel threads are in it too, should the first process be invisible.
            self.host_netns = inode_of(1).or_else(|| inode_of(2));
        }
        self.host_netns
    }

    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        self.namespaces.inode(cookie, tid)
    }

    fn cache_netns(&mut self, cookie: u64, inode: u64) {
        self.namespaces.cache_netns(cookie, inode);
    }

    fn thread_netns(&mut self, tid: u32) -> Option<u64> {
        inode_of(tid)
    }

    fn device(&mut self, netns: Option<u64>, index: u32, tid: Option<u32>) -> Option<Printable> {
        let tid = tid.filter(|tid| netns.is_none_or(|netns| inode_of(*tid) == Some(netns)))?;
        devices::name(tid, index)
    }

    fn is_own_address(&mut self, address: IpAddr) -> bool {
        if address.is_loopback() {
            return true;
        }
        let is_old = |at: Instant| at.elapsed() > ADDRESSES_LIFETIME;
        if self.addresses_at.is_none_or(is_old) {
            self.addresses = own_addresses();
            self.addresses_at = Some(Instant::now());
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
