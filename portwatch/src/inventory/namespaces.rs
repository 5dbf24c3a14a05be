//! The network namespaces of this host, and how to look into them.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::getxattr;

use super::holders::socket_of;
use crate::linux::{
    mountinfo::{self, Mount},
    netns::{of_socket, sock_diag, sock_diag_in},
};

/// References kept for one namespace: a process can end or change its namespace before it is entered.
const REFERENCES: usize = 8;

/// Namespaces by inode, with what refers to them.
#[derive(Default)]
pub(super) struct Namespaces(BTreeMap<u64, Vec<Reference>>);

impl Namespaces {
    /// Adds a reference to the namespace with that inode.
    pub(super) fn add(&mut self, inode: u64, reference: Reference) {
        let references = self.0.entry(inode).or_default();
        if references.len() < REFERENCES {
            references.push(reference);
        }
    }

    /// The namespaces that are not in `seen`.
    pub(super) fn without(self, seen: &HashSet<u64>) -> Vec<Namespace> {
        let all = self.0.into_iter();
        all.filter(|(inode, _)| !seen.contains(inode))
            .map(|(inode, references)| Namespace { inode, references })
            .collect()
    }
}

/// A namespace and what refers to it.
pub(super) struct Namespace {
    pub(super) inode: u64,
    references: Vec<Reference>,
}

impl Namespace {
    /// A sock_diag(7) socket in the namespace. None when nothing refers to it any more.
    ///
    /// # Errors
    ///
    /// When this user may not open or enter it.
    pub(super) fn sock_diag(&self) -> io::Result<Option<OwnedFd>> {
        // An unprivileged thread can still read its own namespace.
        if own() == Some(self.inode) {
            return Ok(Some(sock_diag()?));
        }
        let mut denied = None;
        for reference in &self.references {
            let opened = reference.open().and_then(|file| {
                let is_it = file.metadata()?.ino() == self.inode;
                Ok(is_it.then_some(file))
            });
            match opened {
                Ok(Some(file)) => return sock_diag_in(file).map(Some),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    denied = Some(error);
                }
                Ok(None) | Err(_) => {}
            }
        }
        denied.map_or(Ok(None), Err)
    }

    /// The result of `read` for a process that was in the namespace before and after.
    pub(super) fn by_process<T>(&self, read: impl Fn(u32) -> T) -> Option<T> {
        self.references.iter().find_map(|reference| {
            let Reference::Process(path, process) = reference else {
                return None;
            };
            let result = read(*process);
            (inode(path) == Some(self.inode)).then_some(result)
        })
    }
}

/// What refers to a namespace.
pub(super) enum Reference {
    /// `ns/net` of a process or thread, and its id.
    Process(PathBuf, u32),
    /// A mount, or the descriptor of a process.
    File(PathBuf),
    /// A socket in it: a process and its descriptor.
    Socket(u32, i32),
}

impl Reference {
    fn open(&self) -> io::Result<File> {
        match self {
            Self::Process(path, _) | Self::File(path) => File::open(path),
            Self::Socket(pid, fd) => of_socket(socket_of(*pid, *fd)?.as_fd()),
        }
    }
}

/// The namespace of the socket that a process has open, when that is not one of `known`: a socket keeps
/// its namespace alive when nothing else does.
pub(super) fn stray(pid: u32, fd: i32, known: &HashSet<u64>) -> Option<(u64, Reference)> {
    let mut name = [0; 16];
    // Only a socket with ports is duplicated, since that can delay its close.
    let path = format!("/proc/{pid}/fd/{fd}");
    let length = getxattr(path, "system.sockprotoname", &mut name[..]).ok()?;
    let name = name.get(..length)?;
    let has_ports = [&b"TCP"[..], b"UDP", b"MPTCP", b"SCTP", b"DCCP"];
    if !has_ports.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let reference = Reference::Socket(pid, fd);
    let inode = reference.open().ok()?.metadata().ok()?.ino();
    (!known.contains(&inode)).then_some((inode, reference))
}

/// Inode of the calling thread's namespace.
fn own() -> Option<u64> {
    inode(Path::new("/proc/thread-self/ns/net"))
}

/// The namespaces of processes and threads, and those that are mounted (`ip netns`, docker).
pub(super) fn find() -> io::Result<Namespaces> {
    let mut found = Namespaces::default();
    // Mounts first: they outlive processes.
    for mount in mountinfo::own().into_iter().filter(is_netns) {
        if let Some(inode) = inode(&mount.mount_point) {
            found.add(inode, Reference::File(mount.mount_point));
        }
    }
    let mut add = |path: PathBuf, process: u32, except: Option<u64>| {
        let inode = inode(&path).filter(|inode| Some(*inode) != except)?;
        found.add(inode, Reference::Process(path, process));
        Some(inode)
    };
    for pid in pids()? {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let of_process = add(directory.join("ns/net"), pid, None);
        let tasks = directory.join("task");
        // The link count is the number of threads plus two (`proc_task_getattr` in fs/proc/base.c).
        if std::fs::metadata(&tasks).is_ok_and(|tasks| tasks.nlink() > 3) {
            for task in std::fs::read_dir(&tasks).into_iter().flatten().flatten() {
                if let Some(tid) = task.file_name().to_str().and_then(|tid| tid.parse().ok()) {
                    add(task.path().join("ns/net"), tid, of_process);
                }
            }
        }
    }
    Ok(found)
}

/// Those of `inodes`, by the processes that are probably in them; by all when that is not enough.
pub(super) fn find_only(inodes: &HashSet<u64>, processes: &[u32]) -> io::Result<Namespaces> {
    let mut found = Namespaces::default();
    for pid in [std::process::id(), 1].iter().chain(processes) {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        if let Some(inode) = inode(&path).filter(|inode| inodes.contains(inode)) {
            found.add(inode, Reference::Process(path, *pid));
        }
    }
    if found.0.len() < inodes.len() {
        found = find()?;
        found.0.retain(|inode, _| inodes.contains(inode));
    }
    Ok(found)
}

/// Whether it is a network namespace, whose root is called `net:[INODE]` (fs/nsfs.c).
fn is_netns(mount: &Mount) -> bool {
    mount.fs_type == b"nsfs" && mount.root.as_os_str().as_bytes().starts_with(b"net:[")
}

/// The process ids in /proc.
pub(super) fn pids() -> io::Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|file| file.ino())
}
