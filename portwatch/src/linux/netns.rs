//! Network namespaces: BPF programs read their cookies, tools show their inodes.
#![forbid(unsafe_code)]

use std::{collections::HashMap, fs::File, os::unix::fs::MetadataExt as _, thread};

use nix::{
    errno::Errno,
    getsockopt_impl,
    sched::{CloneFlags, setns},
    sockopt_impl,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
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

/// Inode and cookie of the network namespace that thread `tid` is in; no cookie before Linux 5.14.
fn read_netns(tid: u32) -> Option<(u64, Option<u64>)> {
    let namespace = File::open(format!("/proc/{tid}/ns/net")).ok()?;
    let inode = namespace.metadata().ok()?.ino();
    // On a new thread: setns(2) changes the thread, and returning can fail.
    let reader = thread::Builder::new().spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let probe = socket(
            AddressFamily::Unix,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        getsockopt(&probe, NetnsCookie)
    });
    let cookie = reader.ok()?.join().ok()?;
    match cookie {
        Ok(cookie) => Some((inode, Some(cookie))),
        Err(Errno::ENOPROTOOPT) => Some((inode, None)),
        Err(_) => None,
    }
}
