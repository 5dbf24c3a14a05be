//! One scan: the existing sockets on watched ports in the form of events, with their holders.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{Inventory, LeftOut, Reach, SocketEntry, State, is_held_by, read_within};
use crate::{
    linux::clock::thread_time,
    model::{CloseKind, Direction, Event, EventKind, PortKey, SocketKey, Transport},
    process::{Process, Processes, is_running},
    registry::LAST_SYSTEM_PORT,
};

/// A socket that a scan found on a watched port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSocket {
    /// The event that would have been reported when it reached its present state; without task.
    pub event: Event,
    /// Inode of its network namespace.
    pub netns: u64,
    /// The processes that have it open, the oldest first.
    pub holders: Vec<Rc<Process>>,
    /// How many more there are.
    pub holders_omitted: u32,
    /// Whether its holders were known, and not looked for.
    pub is_known: bool,
    /// Whether the BPF programs report its close from now on.
    pub marked: bool,
    /// Whether it is a connection that no listener has accepted.
    pub is_outgoing: bool,
}

/// What a scan covers: of other sockets it does not show whether they exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The ports.
    pub scope: Arc<Scope>,
    /// Inodes of the network namespaces that were read.
    pub read: HashSet<u64>,
    /// Inodes of those that were found and could not be read.
    pub unread: Vec<u64>,
    /// Registered transports without a sock_diag handler.
    pub unshown: Vec<Transport>,
    /// Whether TCP sockets that are bound, neither listening nor connected, are included.
    pub bound: bool,
    /// Cookies of the sockets that it leaves out and that it did not find.
    pub absent: Vec<u64>,
}

/// The existing sockets on watched ports, with their holders.
#[derive(Debug)]
pub struct Scan {
    began: Timestamp,
    cost: Duration,
    scope: Arc<Scope>,
    inventory: Inventory,
    processes: HashMap<u32, Process>,
    absent: Vec<u64>,
}

/// The sockets that a scan keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The watched ports.
    pub watched: HashSet<(u16, Transport)>,
    /// Only sockets created in this cgroup or a descendant; None for the whole host.
    pub cgroup: Option<PathBuf>,
    /// Cookies of accepted sockets that it shows although a listener is on their port.
    pub accepted: HashSet<u64>,
    /// What it does not show.
    pub left_out: LeftOut,
}

impl Scope {
    /// Whether sockets on that port are shown.
    #[must_use]
    pub fn watches(&self, port_key: PortKey) -> bool {
        self.watched.contains(&(port_key.port, port_key.transport))
    }
}

/// The ids of a cgroup and of its descendants.
fn subtree(cgroup: &Path) -> HashSet<u64> {
    let mut ids = HashSet::new();
    let mut directories = vec![cgroup.to_owned()];
    while let Some(directory) = directories.pop() {
        ids.extend(std::fs::metadata(&directory).map(|directory| directory.ino()));
        let entries = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten();
        directories.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    ids
}

/// Bytes of the whole records that a scan brings; further ones are slim.
const MAX_RECORDS: usize = 512 << 10;

/// Holders of one socket that are reported.
pub const MAX_HOLDERS: usize = 32;

impl Scan {
    /// Scans with `threads` threads. Blocks for a walk through /proc, so do not call it on the
    /// thread that reads the ring buffer.
    ///
    /// # Errors
    ///
    /// When /proc cannot be read.
    pub fn take(scope: Arc<Scope>, reach: Reach, threads: usize) -> io::Result<Self> {
        let (began, time) = (Timestamp::now(), thread_time());
        // No socket has port 0.
        let mut inventory = read_within(1..=LAST_SYSTEM_PORT, &reach, Some(&scope), threads)?;
        let cgroups = scope.cgroup.as_deref().map(subtree);
        inventory.sockets.retain(|entry| {
            let port = (entry.local.port(), entry.transport);
            let is_within = |ids: &HashSet<u64>| entry.cgroup.is_none_or(|id| ids.contains(&id));
            scope.watched.contains(&port) && cgroups.as_ref().is_none_or(is_within)
        });
        let mut processes = HashMap::new();
        let mut lookup = Processes::patient();
        identify_holders(&mut inventory.sockets, &mut processes, |pid| {
            lookup.look_up(pid)
        });
        let mut absent = Vec::new();
        if !inventory.read.is_empty() {
            let counted = scope.left_out.cookies.keys().copied();
            absent.extend(counted.filter(|cookie| !inventory.left_out.contains(cookie)));
        }
        Ok(Self {
            absent,
            began,
            cost: thread_time().saturating_sub(time),
            scope,
            inventory,
            processes,
        })
    }

    /// The processor time that it took.
    pub const fn cost(&self) -> Duration {
        self.cost
    }

    /// Inode and cookie of each network namespace that was entered.
    pub fn netns_cookies(&self) -> impl Iterator<Item = (u64, u64)> {
        let namespaces = self.inventory.namespaces.iter();
        namespaces.filter_map(|(inode, cookie)| Some((*inode, (*cookie)?)))
    }

    /// The found sockets and the scan's coverage. `mark` gets each socket and its event, and returns
    /// whether the BPF programs report its close from now on; None when the socket is gone.
    pub fn findings(
        self,
        mut mark: impl FnMut(&SocketEntry, &Event) -> Option<bool>,
    ) -> (Vec<FoundSocket>, Coverage) {
        let processes: HashMap<u32, Rc<Process>> = self
            .processes
            .into_iter()
            .map(|(pid, process)| (pid, Rc::new(process)))
            .collect();
        let coverage = Coverage {
            scope: self.scope,
            read: self.inventory.read,
            unread: self.inventory.unread,
            unshown: self.inventory.unshown,
            bound: self.inventory.shows_bound,
            absent: self.absent,
        };
        let found = self.inventory.sockets.iter().filter_map(|entry| {
            let event = event(entry, self.began);
            let marked = mark(entry, &event)?;
            let holders = entry.holders.iter();
            Some(FoundSocket {
                event,
                netns: entry.netns,
                holders: holders
                    .filter_map(|holder| processes.get(&holder.pid).cloned())
                    .collect(),
                holders_omitted: entry.holders_omitted,
                is_known: entry.is_known,
                marked,
                is_outgoing: entry.is_outgoing,
            })
        });
        (found.collect(), coverage)
    }
}

/// Adds the processes of the holders to `processes` and drops the holders that have ended or closed
/// the socket. The others are ordered by age, the oldest first.
fn identify_holders(
    sockets: &mut [SocketEntry],
    processes: &mut HashMap<u32, Process>,
    mut look_up: impl FnMut(u32) -> Option<Process>,
) {
    let mut bytes = 0;
    for entry in &mut *sockets {
        let mut holders = std::mem::take(&mut entry.holders);
        let omitted = holders.len().saturating_sub(MAX_HOLDERS);
        entry.holders_omitted = u32::try_from(omitted).unwrap_or(u32::MAX);
        holders.truncate(MAX_HOLDERS);
        holders.retain(|holder| {
            if !processes.contains_key(&holder.pid)
                && let Some(mut process) = look_up(holder.pid)
            {
                bytes += process.bytes();
                if bytes > MAX_RECORDS {
                    process = process.slim();
                }
                processes.insert(holder.pid, process);
            }
            // After the look-up: the pid can have been reused between the walk and the look-up.
            is_held_by(entry, *holder)
        });
        entry.holders = holders;
    }
    // Once more at the end: a pid can have been reused between the sockets of one process.
    processes.retain(|pid, process| is_running(*pid, process.start_ns));
    for entry in sockets {
        entry
            .holders
            .retain(|holder| processes.contains_key(&holder.pid));
        entry.holders.sort_by_key(|holder| {
            let process = processes.get(&holder.pid);
            (process.map(|process| process.start_ns), holder.pid)
        });
    }
}

/// The event that would have been reported when the socket reached its state.
fn event(entry: &SocketEntry, time: Timestamp) -> Event {
    let (kind, peer) = match entry.state {
        State::Listening => (EventKind::Listen, None),
        State::Connected(peer) if !entry.transport.is_datagram() => {
            (EventKind::Connect, Some(peer))
        }
        State::Bound | State::Connected(_) => (EventKind::Bind, None),
    };
    Event {
        kind,
        time,
        key: Some(
            entry
                .cookie
                .map_or(SocketKey::Inode(entry.inode), SocketKey::Cookie),
        ),
        netns_cookie: None,
        netns: Some(entry.netns),
        transport: entry.transport,
        address: Some(entry.local.ip()),
        port: entry.local.port(),
        peer,
        task: None,
        // Without a holder it is a kernel socket, or in transit between two processes (SCM_RIGHTS).
        is_kernel_socket: (!entry.holders.is_empty()).then_some(false),
        binder: None,
        outcome: None,
        accepted: None,
        close: CloseKind::Released,
        is_from_host: false,
        // An accepted connection whose listener is gone looks the same from outside.
        direction: (kind == EventKind::Connect && entry.is_outgoing).then_some(Direction::Out),
        session: None,
        interface: None,
        device: entry.device.clone(),
        v6only: entry.v6only,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _, process::Command};

    use super::*;
    use crate::inventory::{self, Holder};

    #[test]
    fn holders_that_have_ended_or_whose_pid_is_reused_are_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let me = std::process::id();
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let holders = [child.id(), me].map(|pid| Holder {
            pid,
            fd: listener.as_raw_fd(),
        });
        let entry = |holders: &[Holder]| {
            let mut sockets = inventory::read(local.port()..=local.port(), 1)
                .unwrap()
                .sockets;
            sockets.retain(|entry| entry.local == local);
            sockets[0].holders = holders.to_vec();
            sockets
        };
        let pids = |look_up: &dyn Fn(u32) -> Option<Process>| {
            let mut sockets = entry(&holders);
            identify_holders(&mut sockets, &mut HashMap::new(), look_up);
            let holders = sockets[0].holders.iter();
            holders.map(|holder| holder.pid).collect::<Vec<_>>()
        };
        let read = |pid| Processes::default().look_up(pid);
        assert_eq!(pids(&read), [me]);
        // The process that was read had the pid before this one.
        let reused = |pid| {
            let mut process = read(pid)?;
            process.start_ns -= 1_000_000_000;
            Some(process)
        };
        assert!(pids(&reused).is_empty());
    }
}
