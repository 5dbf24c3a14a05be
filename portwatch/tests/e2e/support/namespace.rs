//! Network namespaces that live as long as one thread of a test.

use std::{os::unix::fs::MetadataExt as _, process::Command, thread};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};

/// The namespace that the current thread is in; children that it starts are in it too.
#[derive(Clone, Copy)]
pub struct Namespace {
    /// As `socket.netns` of an alert shows it.
    pub inode: u64,
    tid: Pid,
}

/// Runs `test` in a network namespace of its own, with loopback up, that goes when it ends.
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
    /// Runs `ip` with these arguments in the current thread's namespace.
    pub fn ip(&self, arguments: &str) {
        assert_eq!(gettid(), self.tid, "another thread is in another namespace");
        let output = Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
    }

    /// Makes a pair of interfaces between this namespace and another thread's, `inner` here and
    /// `outer` there.
    pub fn connect(&self, other: Self) {
        self.ip(&format!(
            "link add inner type veth peer name outer netns {}",
            other.tid
        ));
    }
}
