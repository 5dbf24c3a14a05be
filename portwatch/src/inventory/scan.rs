//! What a snapshot shows, in the form in which events come: which of it is watched, what holds it,
//! and who that is.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use jiff::Timestamp;

use super::{self as inventory, Snapshot, SocketEntry, State, is_held_by};
use crate::{
    model::{Event, EventKind, SocketKey, Transport},
    process::{Process, Processes},
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
    /// Whether the BPF programs report its close from now on.
    pub marked: bool,
}

/// What a scan covers: about anything else, its silence says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Inodes of the network namespaces that could not be read.
    pub unread: Vec<u64>,
    /// Transports that are not shown at all.
    pub unshown: Vec<Transport>,
    /// Whether TCP sockets are shown that are bound and nothing else.
    pub bound: bool,
}

/// A snapshot of the watched ports, with the processes in it.
#[derive(Debug)]
pub struct Scan {
    began: Timestamp,
    snapshot: Snapshot,
    processes: HashMap<u32, Process>,
}

/// What of a snapshot counts.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The ports that are watched.
    pub watched: HashSet<(u16, Transport)>,
    /// The cgroup that is watched with those below it; None for all of the host.
    pub cgroup: Option<PathBuf>,
}

/// The numbers of a cgroup and of those below it.
fn below(cgroup: &Path) -> HashSet<u64> {
    let mut numbers = HashSet::new();
    let mut folders = vec![cgroup.to_owned()];
    while let Some(folder) = folders.pop() {
        numbers.extend(std::fs::metadata(&folder).map(|folder| folder.ino()));
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    numbers
}

/// Holders of one socket that are named.
const HOLDERS: usize = 32;

impl Scan {
    /// Takes one on that many threads; it takes its time, so not on the thread that reads the ring.
    ///
    /// # Errors
    ///
    /// When /proc cannot be read.
    pub fn take(scope: &Scope, threads: usize) -> io::Result<Self> {
        let began = Timestamp::now();
        // No socket has port 0.
        let mut snapshot = inventory::read(1..=LAST_SYSTEM_PORT, threads)?;
        let cgroups = scope.cgroup.as_deref().map(below);
        snapshot.sockets.retain(|held| {
            let place = (held.local.port(), held.transport);
            let is_within =
                |cgroups: &HashSet<u64>| held.cgroup.is_none_or(|id| cgroups.contains(&id));
            scope.watched.contains(&place) && cgroups.as_ref().is_none_or(is_within)
        });
        let mut names = Processes::default();
        let mut processes = HashMap::new();
        for held in &mut snapshot.sockets {
            held.holders.truncate(HOLDERS);
            let mut holders = std::mem::take(&mut held.holders);
            for holder in &holders {
                if !processes.contains_key(&holder.pid)
                    && let Some(process) = names.look_up(holder.pid)
                {
                    processes.insert(holder.pid, process);
                }
            }
            // Looked at once more, so that no process is named that got the number of another.
            holders.retain(|holder| is_held_by(held, *holder));
            holders.sort_by_key(|holder| {
                let process = processes.get(&holder.pid);
                (process.map(|process| process.start_ns), holder.pid)
            });
            held.holders = holders;
        }
        Ok(Self {
            began,
            snapshot,
            processes,
        })
    }

    /// Inode and cookie of each network namespace that was entered.
    pub fn netns_cookies(&self) -> impl Iterator<Item = (u64, u64)> {
        let seen = self.snapshot.namespaces.iter();
        seen.filter_map(|(inode, cookie)| Some((*inode, (*cookie)?)))
    }

    /// The findings. `mark` gets each socket and its event, and says whether the kernel side
    /// reports its close from now on; None when the socket is gone.
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
            unread: self.snapshot.unread,
            unshown: self.snapshot.unshown,
            bound: self.snapshot.shows_bound,
        };
        let findings = self.snapshot.sockets.iter().filter_map(|held| {
            let event = event(held, self.began);
            let marked = mark(held, &event)?;
            let holders = held.holders.iter();
            Some(FoundSocket {
                event,
                netns: held.netns,
                holders: holders
                    .filter_map(|one| processes.get(&one.pid).cloned())
                    .collect(),
                marked,
            })
        });
        (findings.collect(), coverage)
    }
}

/// What would have been told when the socket came to be as it is.
fn event(held: &SocketEntry, time: Timestamp) -> Event {
    let is_datagram = matches!(held.transport, Transport::Udp | Transport::UdpLite);
    let (kind, peer) = match held.state {
        State::Listening => (EventKind::Listen, None),
        State::Connected(peer) if !is_datagram => (EventKind::Connect, Some(peer)),
        State::Bound | State::Connected(_) => (EventKind::Bind, None),
    };
    Event {
        kind,
        time,
        key: Some(
            held.cookie
                .map_or(SocketKey::Inode(held.inode), SocketKey::Cookie),
        ),
        netns_cookie: None,
        netns: Some(held.netns),
        transport: held.transport,
        address: Some(held.local.ip()),
        port: held.local.port(),
        peer,
        task: None,
        // Without a holder it can be the kernel's, or on its way from one process to another.
        is_kernel_socket: (!held.holders.is_empty()).then_some(false),
        binder: None,
    }
}
