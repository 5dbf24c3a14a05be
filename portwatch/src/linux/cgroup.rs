//! The cgroup v2 hierarchy.

use std::path::PathBuf;

use procfs::process::Process;

/// Where the whole cgroup v2 hierarchy is mounted; None without such a mount.
#[must_use]
pub fn root() -> Option<PathBuf> {
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .ok()?;
    mounts
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2" && mount.root == "/")
        .map(|mount| mount.mount_point)
}
