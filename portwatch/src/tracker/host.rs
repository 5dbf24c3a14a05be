//! What the tracker ask of the machine they run on; tests ask another one.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::ifaddrs::getifaddrs;

use crate::{
    inventory::{self, State},
    linux::netns::{Namespaces, inode_of},
    model::{Event, EventKind, Task},
    process::{Process, Processes},
};

/// The machine, as far as events do not carry it.
pub trait Host {
    /// Who `task`, which acted at `time`, is, as far as it can still be seen.
    fn identify(&mut self, task: &Task, time: Timestamp) -> Rc<Process>;

    /// The process with that number that was identified last.
    fn recall(&mut self, pid: u32) -> Option<Rc<Process>>;

    /// Who holds the TCP socket of `event`, when the kernel did not tell who acted.
    fn holder(&mut self, event: &Event) -> Option<Rc<Process>>;

    /// The inode of the network namespace of the host's first process.
    fn host_netns(&mut self) -> Option<u64>;

    /// The inode of the network namespace with that cookie, which thread `tid` is probably in.
    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64>;

    /// Notes the inode of the network namespace with that cookie.
    fn learn(&mut self, cookie: u64, inode: u64);

    /// The inode of the network namespace that thread `tid` is in.
    fn thread_netns(&mut self, tid: u32) -> Option<u64>;

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
    read_at: Option<Instant>,
}

/// How long the host's addresses are taken for unchanged.
const ADDRESSES_ARE_GOOD_FOR: Duration = Duration::from_secs(1);

impl Host for ThisHost {
    fn identify(&mut self, task: &Task, time: Timestamp) -> Rc<Process> {
        self.processes.identify(task, time)
    }

    fn recall(&mut self, pid: u32) -> Option<Rc<Process>> {
        self.processes.last_identified(pid)
    }

    fn holder(&mut self, event: &Event) -> Option<Rc<Process>> {
        let there = inventory::read(event.port..=event.port, 1).ok()?;
        let local = SocketAddr::new(event.address?, event.port);
        let state = match (event.kind, event.peer) {
            (EventKind::Connect, Some(peer)) => State::Connected(peer),
            _ => State::Listening,
        };
        let candidates = there.sockets.iter().filter(|held| match held.cookie {
            Some(cookie) => Some(cookie) == event.cookie(),
            None => (held.transport, held.local, held.state) == (event.transport, local, state),
        });
        let mut candidates = candidates.filter(|held| {
            let tid = held.holders.first().map(|holder| holder.pid);
            let netns = |cookie| self.namespaces.inode(cookie, tid) == Some(held.netns);
            held.cookie.is_some() || event.netns_cookie.is_none_or(netns)
        });
        let only = candidates.next()?;
        if candidates.next().is_some() {
            return None;
        }
        let first = only.holders.first()?;
        self.processes.look_up(first.pid).map(Rc::new)
    }

    fn host_netns(&mut self) -> Option<u64> {
        if self.host_netns.is_none() {
            // The kernel's threads are in it too, should the first process not let itself be seen.
            self.host_netns = inode_of(1).or_else(|| inode_of(2));
        }
        self.host_netns
    }

    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        self.namespaces.inode(cookie, tid)
    }

    fn learn(&mut self, cookie: u64, inode: u64) {
        self.namespaces.cache_netns(cookie, inode);
    }

    fn thread_netns(&mut self, tid: u32) -> Option<u64> {
        inode_of(tid)
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

impl ThisHost {
    /// The process with that number, as it is now.
    pub fn look_up(&mut self, pid: u32) -> Option<Rc<Process>> {
        self.processes.look_up(pid).map(Rc::new)
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
