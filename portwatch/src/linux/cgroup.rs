//! The cgroup v2 hierarchy.

use std::{
    fs::{File, Metadata},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use super::mountinfo;

/// Where the whole cgroup v2 hierarchy is mounted; None without such a mount. In a cgroup namespace, or
/// where another mount covers each of these, it is not the root of the hierarchy:
/// [`is_hierarchy_root`] shows that.
#[must_use]
pub fn root() -> Option<PathBuf> {
    let mut points: Vec<PathBuf> = mountinfo::own()
        .into_iter()
        .filter(|mount| mount.fs_type == b"cgroup2" && mount.root == Path::new("/"))
        .map(|mount| mount.mount_point)
        .collect();
    let is_root = |point: &PathBuf| {
        point
            .metadata()
            .is_ok_and(|found| is_hierarchy_root(&found))
    };
    let best = points.iter().position(is_root).unwrap_or(0);
    (!points.is_empty()).then(|| points.swap_remove(best))
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
    let line = cgroups
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::/"))?;
    Some(root()?.join(std::ffi::OsStr::from_bytes(line)))
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
