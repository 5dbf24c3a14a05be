//! What the occupancies ask of the machine they run on; tests ask another one.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::ifaddrs::getifaddrs;

use crate::{
    event::{Event, EventKind, Task},
    process::{Namespaces, Process, Processes, netns_inode_of},
    snapshot::{self, State},
};

/// The machine, as far as events do not carry it.
pub trait Host {
    /// Who `task` is, as far as it can still be seen.
    fn identify(&mut self, task: &Task) -> Process;

    /// Who holds the TCP socket of `event`, when the kernel did not tell who acted.
    fn holder(&mut self, event: &Event) -> Option<Rc<Process>>;

    /// The inode of the network namespace with that cookie, which thread `tid` is probably in.
    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64>;

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
    addresses: Vec<IpAddr>,
    read_at: Option<Instant>,
}

/// How long the host's addresses are taken for unchanged.
const ADDRESSES_ARE_GOOD_FOR: Duration = Duration::from_secs(1);

impl Host for ThisHost {
    fn identify(&mut self, task: &Task) -> Process {
        self.processes.identify(task)
    }

    fn holder(&mut self, event: &Event) -> Option<Rc<Process>> {
        let state = match (event.kind, event.peer) {
            (EventKind::Connect, Some(peer)) => State::Connected(peer),
            _ => State::Listening,
        };
        let local = SocketAddr::new(event.address?, event.port);
        let candidates = snapshot::held(event.port).ok()?;
        let mut candidates = candidates.into_iter().filter(|held| {
            held.transport == event.transport && held.local == local && held.state == state
        });
        match event.netns_cookie {
            Some(cookie) => candidates.find_map(|held| {
                let holder = first(&held.holders)?;
                let inode = self.namespaces.inode(cookie, Some(holder.pid));
                (inode == Some(held.netns)).then_some(holder)
            }),
            // Without a namespace only a single candidate can be it.
            None => {
                let only = candidates.next()?;
                let holder = first(&only.holders)?;
                candidates.next().is_none().then_some(holder)
            }
        }
    }

    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        self.namespaces.inode(cookie, tid)
    }

    fn thread_netns(&mut self, tid: u32) -> Option<u64> {
        netns_inode_of(tid)
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

/// The holder that was there first, as far as its number tells.
fn first(holders: &[Rc<Process>]) -> Option<Rc<Process>> {
    holders.iter().min_by_key(|holder| holder.pid).cloned()
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
