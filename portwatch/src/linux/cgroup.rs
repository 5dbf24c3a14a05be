//! The cgroup v2 hierarchy.

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use super::hierarchy;

/// Where the whole cgroup v2 hierarchy is mounted; None without such a mount. In a cgroup namespace, or
/// where another mount covers each of these, it is not the root of the hierarchy:
/// [`is_hierarchy_root`] shows that.
#[must_use]
pub fn root() -> Option<PathBuf> {
    hierarchy::v2().map(|v2| v2.root)
}

/// Whether a directory of cgroupfs is the root of its hierarchy, and not a cgroup below: kernfs numbers
/// from 1 on (`kernfs_create_root` in fs/kernfs/dir.c, 5.10 to 6.18).
#[must_use]
pub fn is_hierarchy_root(directory: &Metadata) -> bool {
    directory.ino() == 1
}

/// The directory of this process's cgroup in the v2 hierarchy; None where that is not mounted as a whole
/// or the process is not in it.
#[must_use]
pub fn own() -> Option<PathBuf> {
    let cgroups = std::fs::read("/proc/self/cgroup").ok()?;
    Some(directory(&root()?, in_v2(&cgroups)?))
}

/// The path in the v2 hierarchy, which is number 0 in proc_pid_cgroup(5).
#[must_use]
pub fn in_v2(cgroups: &[u8]) -> Option<&[u8]> {
    let mut lines = cgroups.split(|byte| *byte == b'\n');
    lines.find_map(|line| line.strip_prefix(b"0::"))
}

/// The directory of a cgroup with that path in the hierarchy that is mounted at `root`.
#[must_use]
pub fn directory(root: &Path, path: &[u8]) -> PathBuf {
    let below = path.strip_prefix(b"/").unwrap_or(path);
    root.join(OsStr::from_bytes(below))
}

/// Opens the cgroup with that id below `root`, an open directory of the hierarchy. A file handle in
/// kernfs is the id alone (`kernfs_fh_to_dentry` in fs/kernfs/mount.c, Linux 6.18). None when the
/// cgroup has been removed, or without `CAP_DAC_READ_SEARCH`.
#[must_use]
pub fn open_by_id(root: &File, id: u64) -> Option<OwnedFd> {
    /// `FILEID_KERNFS` in include/linux/exportfs.h.
    const FILEID_KERNFS: i32 = 0xfe;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    let mut handle = Handle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id,
    };
    // SAFETY: `handle` is a `struct file_handle` followed by the eight bytes that it announces, and
    // outlives the call; `root` is open.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    // SAFETY: a new descriptor that nothing else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}
