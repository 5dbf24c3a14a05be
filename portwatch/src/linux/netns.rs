//! Network namespaces: the kernel side knows their cookies, people know their inodes.

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

/// Namespaces that are remembered; past that, all are forgotten.
const BOUND: usize = 4096;

impl Namespaces {
    /// The inode of the namespace with that cookie. `tid` is a thread to
    /// look at for one not seen yet: where it is, the kernel is asked for the cookie, since a thread
    /// can leave the namespace that its socket is in.
    pub fn inode(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        if let Some(inode) = self.0.get(&cookie) {
            return Some(*inode);
        }
        let (inode, found) = ask(tid?)?;
        // Without the socket option (before Linux 5.14) the thread's word must do.
        let Some(found) = found else {
            return Some(inode);
        };
        self.learn(found, inode);
        (found == cookie).then_some(inode)
    }

    /// Notes the inode of the namespace with that cookie.
    pub fn learn(&mut self, cookie: u64, inode: u64) {
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

/// Inode and cookie of the network namespace that thread `tid` is in; no cookie where the kernel has no
/// way to tell.
fn ask(tid: u32) -> Option<(u64, Option<u64>)> {
    let namespace = File::open(format!("/proc/{tid}/ns/net")).ok()?;
    let inode = namespace.metadata().ok()?.ino();
    // A thread of its own, since what it enters it cannot be trusted to leave.
    let asking = thread::Builder::new().spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let probe = socket(
            AddressFamily::Unix,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        getsockopt(&probe, NetnsCookie)
    });
    // A host that is out of threads has no answer.
    let cookie = asking.ok()?.join().ok()?;
    match cookie {
        Ok(cookie) => Some((inode, Some(cookie))),
        Err(Errno::ENOPROTOOPT) => Some((inode, None)),
        Err(_) => None,
    }
}
