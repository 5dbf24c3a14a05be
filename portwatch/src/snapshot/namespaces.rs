//! The network namespaces of this host, and how to get into them.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};
use procfs::process::Process;

/// A namespace and a way into it.
pub(super) struct Found {
    pub(super) inode: u64,
    pub(super) door: Door,
}

/// A file that stands for a namespace.
pub(super) struct Door {
    path: PathBuf,
    /// The process that it was found by.
    process: Option<u32>,
}

impl Door {
    pub(super) const fn new(path: PathBuf, process: Option<u32>) -> Self {
        Self { path, process }
    }

    /// Takes the calling thread into the namespace.
    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(setns(File::open(&self.path)?, CloneFlags::CLONE_NEWNET)?)
    }

    /// A process that is in the namespace.
    pub(super) const fn process(&self) -> Option<u32> {
        self.process
    }
}

/// Inode of the calling thread's namespace.
pub(super) fn own() -> Option<u64> {
    inode(Path::new("/proc/thread-self/ns/net"))
}

/// The namespaces that processes are in, their threads, and those that are mounted somewhere (`ip
/// netns`, docker).
pub(super) fn find() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |path: PathBuf, process: Option<u32>| {
        if let Some(inode) = inode(&path)
            && seen.insert(inode)
        {
            let door = Door::new(path, process);
            found.push(Found { inode, door });
        }
    };
    for pid in pids()? {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        add(folder.join("ns/net"), Some(pid));
        let tasks = folder.join("task");
        // `proc_task_getattr` counts the threads among the links, of which a folder has two.
        if std::fs::metadata(&tasks).is_ok_and(|tasks| tasks.nlink() > 3) {
            for task in std::fs::read_dir(&tasks).into_iter().flatten().flatten() {
                let tid = task.file_name().to_str().and_then(|tid| tid.parse().ok());
                add(task.path().join("ns/net"), tid);
            }
        }
    }
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    for mount in mounts.into_iter().flatten() {
        if mount.fs_type == "nsfs" && mount.root.starts_with("net:[") {
            add(mount.mount_point, None);
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
