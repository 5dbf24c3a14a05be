//! The network namespaces of this host, and how to look into them.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use crate::linux::{
    mountinfo::{self, Mount},
    netns::{sock_diag, sock_diag_in},
};

/// Paths kept for one namespace: a process can end or change its namespace before it is entered.
const PATHS_PER_NAMESPACE: usize = 8;

/// Namespaces by inode, with paths that refer to them.
#[derive(Default)]
pub(super) struct Namespaces(BTreeMap<u64, Vec<NetnsPath>>);

impl Namespaces {
    /// Adds a path of the namespace with that inode.
    pub(super) fn add(&mut self, inode: u64, path: NetnsPath) {
        let paths = self.0.entry(inode).or_default();
        if paths.len() < PATHS_PER_NAMESPACE {
            paths.push(path);
        }
    }

    /// The namespaces that are not in `seen`.
    pub(super) fn without(self, seen: &HashSet<u64>) -> Vec<Namespace> {
        let all = self.0.into_iter();
        all.filter(|(inode, _)| !seen.contains(inode))
            .map(|(inode, paths)| Namespace { inode, paths })
            .collect()
    }
}

/// A namespace and paths that refer to it.
pub(super) struct Namespace {
    pub(super) inode: u64,
    paths: Vec<NetnsPath>,
}

impl Namespace {
    /// A sock_diag(7) socket in the namespace. None when no path refers to it any more.
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
        for path in &self.paths {
            let opened = File::open(&path.path).and_then(|file| {
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
        self.paths.iter().find_map(|path| {
            let result = read(path.process?);
            (inode(&path.path) == Some(self.inode)).then_some(result)
        })
    }
}

/// A file that refers to a namespace.
pub(super) struct NetnsPath {
    path: PathBuf,
    /// The process or thread whose `ns/net` it is.
    process: Option<u32>,
}

impl NetnsPath {
    pub(super) const fn new(path: PathBuf, process: Option<u32>) -> Self {
        Self { path, process }
    }
}

/// Inode of the calling thread's namespace.
fn own() -> Option<u64> {
    inode(Path::new("/proc/thread-self/ns/net"))
}

/// The namespaces of processes and threads, and those that are mounted (`ip netns`, docker).
pub(super) fn find() -> io::Result<Namespaces> {
    let mut found = Namespaces::default();
    let mut add = |path: PathBuf, process: Option<u32>, except: Option<u64>| {
        let inode = inode(&path).filter(|inode| Some(*inode) != except)?;
        found.add(inode, NetnsPath::new(path, process));
        Some(inode)
    };
    // Mounts first: they outlive processes.
    for mount in mountinfo::own().into_iter().filter(is_netns) {
        add(mount.mount_point, None, None);
    }
    for pid in pids()? {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let of_process = add(directory.join("ns/net"), Some(pid), None);
        let tasks = directory.join("task");
        // The link count is the number of threads plus two (`proc_task_getattr` in fs/proc/base.c).
        if std::fs::metadata(&tasks).is_ok_and(|tasks| tasks.nlink() > 3) {
            for task in std::fs::read_dir(&tasks).into_iter().flatten().flatten() {
                let tid = task.file_name().to_str().and_then(|tid| tid.parse().ok());
                add(task.path().join("ns/net"), tid, of_process);
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
            found.add(inode, NetnsPath::new(path, Some(*pid)));
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
