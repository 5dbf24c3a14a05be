//! Cgroups: from an event's number to a path, and from a path to a systemd unit.

use std::{
    fs::File,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use crate::{linux::cgroup::root, model::Printable, util::Bounded};

/// Paths that are remembered.
const PATHS: usize = 1024;

/// The paths of cgroups by their number, which is what the kernel side knows of a process that is
/// gone.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// Where the v2 hierarchy is mounted, if it is.
    root: Option<(PathBuf, File)>,
    known: Bounded<u64, Vec<u8>>,
}

impl Default for Cgroups {
    fn default() -> Self {
        let root = root().and_then(|path| {
            let folder = File::open(&path).ok()?;
            Some((path, folder))
        });
        Self {
            root,
            known: Bounded::new(PATHS),
        }
    }
}

impl Cgroups {
    /// The path of the cgroup with that number below the root of the v2 hierarchy; None when it is
    /// gone too.
    pub(super) fn path(&mut self, id: u64) -> Option<Vec<u8>> {
        if let Some(path) = self.known.get(&id) {
            return Some(path.clone());
        }
        let (root, folder) = self.root.as_ref()?;
        let found = open_by_id(folder, id)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
        let below = path.strip_prefix(root).ok()?;
        let path = [&b"/"[..], below.as_os_str().as_bytes()].concat();
        self.known.put(id, path.clone());
        Some(path)
    }
}

/// Opens the cgroup with that number: it is all of a file handle in kernfs
/// (`kernfs_fh_to_dentry` in fs/kernfs/mount.c).
fn open_by_id(root: &File, id: u64) -> Option<OwnedFd> {
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
    // SAFETY: `handle` is a `struct file_handle` with the eight bytes behind it that it announces,
    // and outlives the call; `root` is open.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    // SAFETY: a descriptor that the kernel has just made for this call.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The path in the v2 hierarchy, which is number 0 in proc_pid_cgroup(5).
pub(super) fn in_v2(cgroups: &[u8]) -> Option<&[u8]> {
    cgroups
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))
}

/// The paths in all hierarchies, the second one first.
pub(super) fn paths(cgroups: &[u8]) -> impl Iterator<Item = &[u8]> {
    let others = cgroups
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.starts_with(b"0::"))
        .filter_map(|line| line.splitn(3, |byte| *byte == b':').nth(2));
    in_v2(cgroups).into_iter().chain(others)
}

/// The innermost systemd unit that a cgroup path names (systemd.unit(5)).
pub(super) fn unit(cgroups: &[u8]) -> Option<Printable> {
    const KINDS: [&[u8]; 5] = [b".service", b".scope", b".socket", b".mount", b".swap"];
    paths(cgroups).find_map(|path| {
        path.rsplit(|byte| *byte == b'/')
            .find(|name| KINDS.iter().any(|kind| name.ends_with(kind)))
            .map(Printable::from_bytes)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_unit_is_the_innermost_one() {
        let cases = [
            ("0::/system.slice/x.service", Some("x.service")),
            ("0::/system.slice/ssh@3.service/sub", Some("ssh@3.service")),
            (
                "0::/user.slice/user-0.slice/user@0.service/app.slice/run-1.scope",
                Some("run-1.scope"),
            ),
            ("0::/user.slice/user-0.slice", None),
            ("0::/docker/0123", None),
            ("0::/", None),
            // A hybrid host: systemd uses a hierarchy of its own.
            (
                "1:name=systemd:/system.slice/y.service\n0::/\n",
                Some("y.service"),
            ),
        ];
        for (path, expected) in cases {
            assert_eq!(unit(path.as_bytes()).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_cgroup_is_found_by_its_number() {
        let mut cgroups = Cgroups::default();
        let Some((root, _)) = &cgroups.root else {
            panic!("this test needs a mounted cgroup v2 hierarchy and root");
        };
        let name = format!("portwatch-unit-{}", std::process::id());
        let folder = root.join(&name);
        std::fs::create_dir(&folder).unwrap();
        let id = std::fs::metadata(&folder).unwrap().ino();
        let path = cgroups.path(id);
        std::fs::remove_dir(&folder).unwrap();
        assert_eq!(path, Some(format!("/{name}").into_bytes()));
        assert_eq!(cgroups.path(u64::MAX), None);
    }
}
