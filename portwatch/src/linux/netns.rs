//! Network namespaces: BPF programs read their cookies, tools show their inodes.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    sync::OnceLock,
    thread,
};

use nix::{
    errno::Errno,
    getsockopt_impl,
    sched::{CloneFlags, setns},
    sockopt_impl,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, getsockopt, socket},
};

sockopt_impl!(
    /// `SO_NETNS_COOKIE`, Linux 5.14.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// The inodes of the network namespaces seen so far, by cookie.
#[derive(Debug, Default)]
pub struct Namespaces(HashMap<u64, u64>);

/// Cached namespaces; when full, the cache is emptied.
const BOUND: usize = 4096;

impl Namespaces {
    /// The inode of the namespace with that cookie. For a cookie that is not cached, `tid` is a
    /// thread that is probably in the namespace; the cookie of the thread's namespace is compared,
    /// since a thread can have left the namespace of its socket.
    pub fn inode(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        if let Some(inode) = self.0.get(&cookie) {
            return Some(*inode);
        }
        let (inode, found) = read_netns(tid?)?;
        // Before Linux 5.14 there is no cookie to compare.
        let Some(found) = found else {
            return Some(inode);
        };
        self.cache_netns(found, inode);
        (found == cookie).then_some(inode)
    }

    /// Caches the inode of the namespace with that cookie.
    pub fn cache_netns(&mut self, cookie: u64, inode: u64) {
        if self.0.len() >= BOUND {
            self.0.clear();
        }
        self.0.insert(cookie, inode);
    }
}

/// The inode of the network namespace that `pid` is in.
#[must_use]
pub fn inode_of(pid: u32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/net"))
        .ok()
        .map(|namespace| namespace.ino())
}

/// Opens the network namespace of a socket (`SIOCGSKNS` in net/socket.c, Linux 4.10).
///
/// # Errors
///
/// Without `CAP_NET_ADMIN` in the user namespace that owns it, or when it is not a socket.
pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: the request has no argument and writes to no memory of this process.
    let opened = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGSKNS as libc::Ioctl) };
    let opened = Errno::result(opened)?;
    // SAFETY: the kernel has just made this descriptor, with O_CLOEXEC, and nothing else has it.
    Ok(unsafe { File::from_raw_fd(opened) })
}

/// Opens a sock_diag(7) socket in the network namespace that a descriptor refers to.
pub type Opener = Box<dyn Fn(BorrowedFd<'_>) -> io::Result<OwnedFd> + Send + Sync>;

static OPENER: OnceLock<Opener> = OnceLock::new();

/// Sets how this process opens sockets in other namespaces from now on; the first call counts.
/// Without it, a thread enters the namespace, which takes `CAP_SYS_ADMIN`.
pub fn open_with(opener: Opener) {
    let _ = OPENER.set(opener);
}

/// A new sock_diag(7) socket in the calling thread's network namespace.
///
/// # Errors
///
/// The kernel's.
pub fn sock_diag() -> Result<OwnedFd, Errno> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
}

/// A new sock_diag(7) socket in the network namespace that the file refers to.
///
/// # Errors
///
/// When this process may not enter it.
pub fn sock_diag_in(namespace: File) -> io::Result<OwnedFd> {
    if let Some(open) = OPENER.get() {
        return open(namespace.as_fd());
    }
    // On a new thread: setns(2) changes the thread, and returning can fail.
    let opener = thread::Builder::new().spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(sock_diag()?)
    })?;
    let panicked = |_| Err(io::Error::other("the thread panicked"));
    opener.join().unwrap_or_else(panicked)
}

/// Inode and cookie of the network namespace that thread `tid` is in; no cookie before Linux 5.14.
fn read_netns(tid: u32) -> Option<(u64, Option<u64>)> {
    let namespace = File::open(format!("/proc/{tid}/ns/net")).ok()?;
    let inode = namespace.metadata().ok()?.ino();
    match getsockopt(&sock_diag_in(namespace).ok()?, NetnsCookie) {
        Ok(cookie) => Some((inode, Some(cookie))),
        Err(Errno::ENOPROTOOPT) => Some((inode, None)),
        Err(_) => None,
    }
}
