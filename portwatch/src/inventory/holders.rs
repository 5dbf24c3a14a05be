//! Which processes have a socket open: /proc/PID/fd of every process.

use std::{
    collections::HashMap,
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
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use super::{
    SocketEntry,
    namespaces::{Namespaces, NetnsPath, pids},
};
use crate::util::parallel;

/// A process that has the socket open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// In the initial pid namespace, if this process is in it.
    pub pid: u32,
    /// The descriptor.
    pub fd: i32,
}

/// Adds to each socket its holders, the lowest process id first. Returns network namespaces that
/// descriptors stand for.
pub(super) fn find(sockets: &mut [SocketEntry], threads: usize) -> io::Result<Namespaces> {
    let mut by_inode: HashMap<u64, Vec<usize>> = HashMap::new();
    for (index, held) in sockets.iter_mut().enumerate() {
        held.holders.clear();
        by_inode.entry(held.inode).or_default().push(index);
    }
    let proc = openat(
        rustix::fs::CWD,
        "/proc",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut pids = pids()?;
    pids.sort_unstable();
    let mut namespaces = Namespaces::default();
    let all = parallel::map(threads, pids.clone(), |pid| {
        descriptors(&proc, pid, |inode| by_inode.contains_key(&inode))
    });
    for (pid, (held, found)) in pids.into_iter().zip(all) {
        for (inode, door) in found {
            namespaces.add(inode, door);
        }
        for (inode, fd) in held {
            for index in by_inode.get(&inode).into_iter().flatten() {
                let holders = &mut sockets[*index].holders;
                if holders.last().is_none_or(|last| last.pid != pid) {
                    holders.push(Holder { pid, fd });
                }
            }
        }
    }
    Ok(namespaces)
}

/// The inodes of sockets with their descriptors, and of network namespaces with a way in.
type Descriptors = (Vec<(u64, i32)>, Vec<(u64, NetnsPath)>);

/// The sockets that count among a process's descriptors, and the network namespaces.
fn descriptors(proc: &OwnedFd, pid: u32, counts: impl Fn(u64) -> bool) -> Descriptors {
    let mut sockets = Vec::new();
    let mut namespaces = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Another user's process, or one that is gone.
    let Ok(folder) = openat(proc, format!("{pid}/fd"), flags, Mode::empty()) else {
        return (sockets, namespaces);
    };
    let mut entries = vec![MaybeUninit::uninit(); 1 << 15];
    let mut reader = RawDir::new(&folder, &mut entries);
    while let Some(Ok(entry)) = reader.next() {
        let Some(fd) = number(entry.file_name()) else {
            continue;
        };
        let mut target = [MaybeUninit::uninit(); 64];
        let Ok((target, _)) = readlinkat_raw(&folder, entry.file_name(), &mut target) else {
            continue;
        };
        if let Some(inode) = inode(target, b"socket:[") {
            sockets.extend(counts(inode).then_some((inode, fd)));
        } else if let Some(inode) = inode(target, b"net:[") {
            let door = NetnsPath::new(PathBuf::from(format!("/proc/{pid}/fd/{fd}")), None);
            namespaces.push((inode, door));
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

/// A descriptor of the same socket in this process; None when its holders have closed it. Needs
/// the right to trace them, and Linux 5.6.
#[must_use]
pub fn duplicate(held: &SocketEntry) -> Option<OwnedFd> {
    held.holders.iter().find_map(|holder| {
        let pid = Pid::from_raw(i32::try_from(holder.pid).ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at just before, so that no other socket is held that has got the number by now.
        if !is_held_by(held, *holder) {
            return None;
        }
        let socket = pidfd_getfd(&process, holder.fd, PidfdGetfdFlags::empty()).ok()?;
        // The number can be another file's by now.
        // MPTCP's own sockets have other cookies than those that the kernel shows and reports.
        let is_it = rustix::fs::fstat(socket.as_fd()).is_ok_and(|file| file.st_ino == held.inode)
            && rustix::net::sockopt::socket_cookie(&socket).ok() == held.cookie;
        is_it.then_some(socket)
    })
}

/// Whether that holder still has it open.
#[must_use]
pub fn is_held_by(held: &SocketEntry, holder: Holder) -> bool {
    let link = std::fs::read_link(format!("/proc/{}/fd/{}", holder.pid, holder.fd));
    link.is_ok_and(|target| inode(target.as_os_str().as_bytes(), b"socket:[") == Some(held.inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_told_apart() {
        assert_eq!(inode(b"socket:[4711]", b"socket:["), Some(4711));
        assert_eq!(inode(b"net:[4026531840]", b"net:["), Some(4_026_531_840));
        for other in [&b"pipe:[4711]"[..], b"/home/socket:[1]", b"socket:[]"] {
            assert_eq!(inode(other, b"socket:["), None);
        }
    }
}
