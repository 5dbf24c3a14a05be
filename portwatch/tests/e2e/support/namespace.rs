//! Network namespaces that exist as long as a thread of a test.

use std::{os::unix::fs::MetadataExt as _, process::Command, thread};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};

/// The network namespace of the current thread and of the children that it starts.
#[derive(Clone, Copy)]
pub struct Namespace {
    /// Its inode, as in `socket.netns` of an alert.
    pub inode: u64,
    tid: Pid,
}

/// Runs `test` in a new network namespace with loopback up.
pub fn in_namespace<T: Send>(test: impl FnOnce(&Namespace) -> T + Send) -> T {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests load BPF programs and need root: run `cargo xtask test`"
    );
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let namespace = std::fs::metadata("/proc/thread-self/ns/net").unwrap();
            let namespace = Namespace {
                inode: namespace.ino(),
                tid: gettid(),
            };
            namespace.ip("link set lo up");
            test(&namespace)
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Namespace {
    /// Runs `ip` with these arguments in this namespace.
    pub fn ip(&self, arguments: &str) {
        assert_eq!(gettid(), self.tid, "another thread is in another namespace");
        let output = Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
    }

    /// Creates a pair of interfaces: `inner` in this namespace, `outer` in the other.
    pub fn connect(&self, other: Self) {
        self.ip(&format!(
            "link add inner type veth peer name outer netns {}",
            other.tid
        ));
    }
}
