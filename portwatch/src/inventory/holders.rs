//! Which processes have a socket open: `/proc/PID/fd` of every process.

use std::{
    collections::{HashMap, HashSet},
    ffi::CStr,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
};

use rustix::{
    fs::{Mode, OFlags, RawDir, openat, readlinkat_raw},
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use super::{
    Reach, SocketEntry,
    namespaces::{Namespaces, Reference, pids, stray},
};
use crate::util::parallel;

/// A process that has the socket open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Process id in the pid namespace of the mounted /proc.
    pub pid: u32,
    /// One of its descriptors of the socket.
    pub fd: i32,
}

/// Sets the holders of each socket, ordered by process id, as far as `reach` says. Returns the network
/// namespaces that descriptors refer to; those in which sockets are, only where all descriptors are read
/// and as far as they are not `known`.
pub(super) fn find(
    sockets: &mut [SocketEntry],
    reach: &Reach,
    known: &HashSet<u64>,
    threads: usize,
) -> io::Result<Namespaces> {
    let known = matches!(reach, Reach::All).then_some(known);
    let mut search = Search::new(sockets, reach, known)?;
    match reach {
        Reach::All => search.walk(pids()?, threads),
        _ if search.by_inode.is_empty() => {}
        Reach::Holders(targets) => search.walk(targets.likely(), threads),
        Reach::Changes(targets) => {
            let likely = targets.likely();
            search.walk(likely.clone(), threads);
            let mut others = pids()?;
            others.retain(|pid| !likely.contains(pid));
            // The youngest first: what is new is probably theirs.
            others.sort_unstable_by_key(|pid| std::cmp::Reverse(*pid));
            for batch in others.chunks(BATCH.max(threads)) {
                if search.is_complete() {
                    break;
                }
                search.walk(batch.to_vec(), threads);
            }
        }
    }
    let namespaces = search.namespaces;
    for entry in sockets {
        entry.holders.sort_unstable();
    }
    Ok(namespaces)
}

/// Processes whose descriptors are read between two looks at whether that is enough.
const BATCH: usize = 16;

/// The holders that are found so far.
struct Search<'a> {
    proc: OwnedFd,
    sockets: &'a mut [SocketEntry],
    /// Of each socket whose holders are wanted.
    by_inode: HashMap<u64, Vec<usize>>,
    namespaces: Namespaces,
    /// The network namespaces in which sockets need not be looked for; None to look for no other.
    known: Option<&'a HashSet<u64>>,
}

impl<'a> Search<'a> {
    fn new(
        sockets: &'a mut [SocketEntry],
        reach: &Reach,
        known: Option<&'a HashSet<u64>>,
    ) -> io::Result<Self> {
        let mut by_inode: HashMap<u64, Vec<usize>> = HashMap::new();
        for (index, entry) in sockets.iter_mut().enumerate() {
            entry.holders.clear();
            entry.is_known = match (reach, entry.cookie) {
                (Reach::Changes(targets), Some(cookie)) => targets.known.contains(&cookie),
                _ => false,
            };
            if !entry.is_known {
                by_inode.entry(entry.inode).or_default().push(index);
            }
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self {
            proc: openat(rustix::fs::CWD, "/proc", flags, Mode::empty())?,
            sockets,
            by_inode,
            namespaces: Namespaces::default(),
            known,
        })
    }

    /// Reads the descriptors of these processes, each of which must be new.
    fn walk(&mut self, pids: Vec<u32>, threads: usize) {
        let all = parallel::map(threads, pids.clone(), |pid| {
            let is_wanted = |inode| self.by_inode.contains_key(&inode);
            descriptors(&self.proc, pid, is_wanted, self.known)
        });
        for (pid, (of_sockets, of_namespaces)) in pids.into_iter().zip(all) {
            for (inode, path) in of_namespaces {
                self.namespaces.add(inode, path);
            }
            for (inode, fd) in of_sockets {
                for index in self.by_inode.get(&inode).into_iter().flatten() {
                    let holders = &mut self.sockets[*index].holders;
                    if holders.last().is_none_or(|last| last.pid != pid) {
                        holders.push(Holder { pid, fd });
                    }
                }
            }
        }
    }

    /// Whether each socket has a holder.
    fn is_complete(&self) -> bool {
        let mut wanted = self.by_inode.values().flatten();
        wanted.all(|index| !self.sockets[*index].holders.is_empty())
    }
}

/// Inodes of sockets with a descriptor each, and of network namespaces with a reference each.
type Descriptors = (Vec<(u64, i32)>, Vec<(u64, Reference)>);

/// The descriptors of a process that refer to network namespaces, to sockets that `is_wanted`, or to
/// sockets in namespaces that are not `known`.
fn descriptors(
    proc: &OwnedFd,
    pid: u32,
    is_wanted: impl Fn(u64) -> bool,
    known: Option<&HashSet<u64>>,
) -> Descriptors {
    let mut sockets = Vec::new();
    let mut namespaces = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Another user's process, or one that has ended.
    let Ok(directory) = openat(proc, format!("{pid}/fd"), flags, Mode::empty()) else {
        return (sockets, namespaces);
    };
    let mut entries = vec![MaybeUninit::uninit(); 1 << 15];
    let mut reader = RawDir::new(&directory, &mut entries);
    while let Some(Ok(entry)) = reader.next() {
        let Some(fd) = number(entry.file_name()) else {
            continue;
        };
        let mut target = [MaybeUninit::uninit(); 64];
        let Ok((target, _)) = readlinkat_raw(&directory, entry.file_name(), &mut target) else {
            continue;
        };
        if let Some(inode) = inode(target, b"socket:[") {
            if is_wanted(inode) {
                sockets.push((inode, fd));
            } else {
                namespaces.extend(known.and_then(|known| stray(pid, fd, known)));
            }
        } else if let Some(inode) = inode(target, b"net:[") {
            let path = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
            namespaces.push((inode, Reference::File(path)));
        }
    }
    (sockets, namespaces)
}

/// The number of a descriptor; None for `.` and `..`.
fn number(name: &CStr) -> Option<i32> {
    name.to_str().ok()?.parse().ok()
}

/// The number in `socket:[4711]`.
fn inode(target: &[u8], prefix: &[u8]) -> Option<u64> {
    let digits = target.strip_prefix(prefix)?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A new descriptor of the same socket in this process; None when its holders have closed it.
/// Needs permission to ptrace a holder (pidfd_getfd(2), Linux 5.6).
#[must_use]
pub fn duplicate(entry: &SocketEntry) -> Option<OwnedFd> {
    entry.holders.iter().find_map(|holder| {
        if !is_held_by(entry, *holder) {
            return None;
        }
        let socket = socket_of(holder.pid, holder.fd).ok()?;
        // Pid and descriptor can have been reused. The MPTCP socket of a descriptor has another cookie
        // than the TCP subflow that sock_diag and the BPF programs report.
        let is_same = rustix::fs::fstat(socket.as_fd())
            .is_ok_and(|file| file.st_ino == entry.inode)
            && rustix::net::sockopt::socket_cookie(&socket).ok() == entry.cookie;
        is_same.then_some(socket)
    })
}

/// A new descriptor in this process of what a process has open. While there is one, a socket stays
/// open although its holders have closed it.
pub(super) fn socket_of(pid: u32, fd: i32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    Ok(pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())?)
}

/// Whether the holder still has the socket open.
#[must_use]
pub fn is_held_by(entry: &SocketEntry, holder: Holder) -> bool {
    has_open(holder, entry.inode)
}

/// Whether that descriptor is of the socket with that inode.
pub(super) fn has_open(holder: Holder, socket: u64) -> bool {
    let link = std::fs::read_link(format!("/proc/{}/fd/{}", holder.pid, holder.fd));
    link.is_ok_and(|target| inode(target.as_os_str().as_bytes(), b"socket:[") == Some(socket))
}

/// The first process that has a socket open, and the number of all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstHolder {
    pub(super) first: Option<Holder>,
    pub(super) count: u32,
    last: u32,
}

/// Sets the holders of the sockets with these inodes from the descriptors of all processes. Returns the
/// network namespaces that descriptors refer to, or the sockets in them, as far as they are not `known`.
pub(super) fn find_first(
    wanted: &mut HashMap<u64, FirstHolder>,
    known: &HashSet<u64>,
    threads: usize,
) -> io::Result<Namespaces> {
    /// Whose descriptors are in memory at once.
    const PROCESSES: usize = 256;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let proc = openat(rustix::fs::CWD, "/proc", flags, Mode::empty())?;
    let mut namespaces = Namespaces::default();
    for holder in wanted.values_mut() {
        *holder = FirstHolder::default();
    }
    for batch in pids()?.chunks(PROCESSES) {
        let all = parallel::map(threads, batch.to_vec(), |pid| {
            let is_wanted = |inode| wanted.contains_key(&inode);
            descriptors(&proc, pid, is_wanted, Some(known))
        });
        for (pid, (of_sockets, of_namespaces)) in batch.iter().copied().zip(all) {
            for (inode, path) in of_namespaces {
                namespaces.add(inode, path);
            }
            for (inode, fd) in of_sockets {
                let Some(holder) = wanted.get_mut(&inode) else {
                    continue;
                };
                if holder.last != pid {
                    holder.first = holder.first.or(Some(Holder { pid, fd }));
                    holder.count += 1;
                    holder.last = pid;
                }
            }
        }
    }
    Ok(namespaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inode_is_read_from_links_of_one_kind() {
        assert_eq!(inode(b"socket:[4711]", b"socket:["), Some(4711));
        assert_eq!(inode(b"net:[4026531840]", b"net:["), Some(4_026_531_840));
        for other in [&b"pipe:[4711]"[..], b"/home/socket:[1]", b"socket:[]"] {
            assert_eq!(inode(other, b"socket:["), None);
        }
    }
}
