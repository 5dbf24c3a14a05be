//! The network namespaces of this host, and how to get into them.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};
use procfs::process::Process;

/// Ways into one namespace that are kept: a process can end, or go elsewhere, before it is entered.
const DOORS: usize = 8;

/// Namespaces and the ways into them.
#[derive(Default)]
pub(super) struct Namespaces(BTreeMap<u64, Vec<NetnsPath>>);

impl Namespaces {
    /// Adds a way into the namespace of that inode.
    pub(super) fn add(&mut self, inode: u64, door: NetnsPath) {
        let doors = self.0.entry(inode).or_default();
        if doors.len() < DOORS {
            doors.push(door);
        }
    }

    /// All but those.
    pub(super) fn without(self, seen: &HashSet<u64>) -> Vec<Namespace> {
        let all = self.0.into_iter();
        all.filter(|(inode, _)| !seen.contains(inode))
            .map(|(inode, doors)| Namespace { inode, doors })
            .collect()
    }
}

/// A namespace and ways into it.
pub(super) struct Namespace {
    pub(super) inode: u64,
    doors: Vec<NetnsPath>,
}

impl Namespace {
    /// Takes the calling thread into it; whether one of its doors still led there.
    pub(super) fn enter(&self) -> io::Result<bool> {
        // Without the right to enter others, a thread can still read where it is.
        if own() == Some(self.inode) {
            return Ok(true);
        }
        let mut refused = None;
        for door in &self.doors {
            let opened = File::open(&door.path).and_then(|file| {
                let is_it = file.metadata()?.ino() == self.inode;
                Ok(is_it.then_some(file))
            });
            match opened {
                Ok(Some(file)) => {
                    setns(file, CloneFlags::CLONE_NEWNET)?;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    refused = Some(error);
                }
                Ok(None) | Err(_) => {}
            }
        }
        refused.map_or(Ok(false), Err)
    }

    /// What `read` reads of a process that is in the namespace before and after.
    pub(super) fn by_process<T>(&self, read: impl Fn(u32) -> T) -> Option<T> {
        self.doors.iter().find_map(|door| {
            let what = read(door.process?);
            (inode(&door.path) == Some(self.inode)).then_some(what)
        })
    }
}

/// A file that stands for a namespace.
pub(super) struct NetnsPath {
    path: PathBuf,
    /// The process that it was found by.
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

/// The namespaces that processes are in, their threads, and those that are mounted somewhere (`ip
/// netns`, docker).
pub(super) fn find() -> io::Result<Namespaces> {
    let mut found = Namespaces::default();
    let mut add = |path: PathBuf, process: Option<u32>, but: Option<u64>| {
        let inode = inode(&path).filter(|inode| Some(*inode) != but)?;
        found.add(inode, NetnsPath::new(path, process));
        Some(inode)
    };
    // These first: they stay.
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    for mount in mounts.into_iter().flatten() {
        if mount.fs_type == "nsfs" && mount.root.starts_with("net:[") {
            add(mount.mount_point, None, None);
        }
    }
    for pid in pids()? {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let its = add(folder.join("ns/net"), Some(pid), None);
        let tasks = folder.join("task");
        // `proc_task_getattr` counts the threads among the links, of which a folder has two.
        if std::fs::metadata(&tasks).is_ok_and(|tasks| tasks.nlink() > 3) {
            for task in std::fs::read_dir(&tasks).into_iter().flatten().flatten() {
                let tid = task.file_name().to_str().and_then(|tid| tid.parse().ok());
                add(task.path().join("ns/net"), tid, its);
            }
        }
    }
    Ok(found)
}

/// The processes that /proc shows.
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
