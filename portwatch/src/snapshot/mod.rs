//! The sockets that are there already, as /proc shows them.

mod tables;

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    rc::Rc,
};

use procfs::{
    ProcResult,
    process::{FDTarget, Process as ProcEntry, all_processes},
};

use self::tables::read;
use crate::{
    event::Transport,
    process::{Process, Processes, netns_inode_of},
};

/// What a socket does with its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A TCP listener.
    Listening,
    /// A datagram socket.
    Bound,
    /// A connection, accepted or made from that port.
    Connected(SocketAddr),
}

/// A socket on a port.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its transport.
    pub transport: Transport,
    /// Its own address. An IPv4-mapped one is given as IPv4.
    pub local: SocketAddr,
    /// What it does there.
    pub state: State,
    /// Its number in the socket file system; 0 when no process holds it any more.
    pub inode: u64,
    /// Inode of its network namespace.
    pub netns: u64,
    /// The processes that have it open, as far as this user may see.
    pub holders: Vec<Rc<Process>>,
}

/// The sockets on `port` in every network namespace that has a process.
///
/// # Errors
///
/// What reading /proc as a whole said; a process that goes away meanwhile is no error.
pub fn held(port: u16) -> ProcResult<Vec<Held>> {
    let mut sockets = Vec::new();
    let mut entered = HashMap::new();
    let processes: Vec<ProcEntry> = all_processes()?.filter_map(Result::ok).collect();
    for entry in &processes {
        let netns = u32::try_from(entry.pid()).ok().and_then(netns_inode_of);
        // Another user's namespace cannot be told; this user's own can.
        let Some(netns) = netns else { continue };
        if let Entry::Vacant(vacant) = entered.entry(netns) {
            vacant.insert(());
            read(entry.pid(), netns, port, &mut sockets);
        }
    }
    if !sockets.is_empty() {
        find_holders(&processes, &mut sockets);
    }
    sockets.sort_by_key(|held| {
        (
            held.netns,
            held.transport,
            held.state,
            held.local,
            held.inode,
        )
    });
    Ok(sockets)
}

fn find_holders(processes: &[ProcEntry], sockets: &mut [Held]) {
    let mut names = Processes::default();
    let by_inode: HashMap<u64, usize> = sockets
        .iter()
        .enumerate()
        .filter(|(_, held)| held.inode != 0)
        .map(|(index, held)| (held.inode, index))
        .collect();
    for entry in processes {
        let Ok(descriptors) = entry.fd() else {
            continue;
        };
        let mut process: Option<Rc<Process>> = None;
        for descriptor in descriptors.flatten() {
            let FDTarget::Socket(inode) = descriptor.target else {
                continue;
            };
            let Some(index) = by_inode.get(&inode) else {
                continue;
            };
            if process.is_none() {
                process = names.look_up(entry).map(Rc::new);
            }
            let Some(process) = &process else { break };
            let holders = &mut sockets[*index].holders;
            if !holders.iter().any(|holder| holder.pid == process.pid) {
                holders.push(Rc::clone(process));
            }
        }
    }
}
