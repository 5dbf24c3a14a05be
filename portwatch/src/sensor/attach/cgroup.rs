//! Finds the cgroup to attach to: the root of the cgroup v2 hierarchy, wherever it is mounted.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use rustix::{
    fs::{Mode, OFlags, Stat, fstat, openat, stat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

use crate::{
    linux::cgroup::{is_hierarchy_root, root},
    sensor::SensorError,
};

/// An open cgroup and what to call it.
pub(in crate::sensor) struct Cgroup {
    pub(in crate::sensor) fd: OwnedFd,
    pub(in crate::sensor) label: String,
}

impl Cgroup {
    /// Opens `path`, or the root of the mounted hierarchy, or a private mount where there is none.
    pub(in crate::sensor) fn open(path: Option<&Path>) -> Result<Self, SensorError> {
        open(path)
    }
}

fn open(path: Option<&Path>) -> Result<Cgroup, SensorError> {
    if let Some(path) = path {
        let problem = |problem: String| SensorError::Cgroup {
            path: path.into(),
            problem,
        };
        let directory = File::open(path).map_err(|error| problem(error.to_string()))?;
        let kind = fstatfs(&directory)
            .map_err(|error| problem(error.to_string()))?
            .filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            let hint = root()
                .map(|root| format!("; this host's is {}", root.display()))
                .unwrap_or_default();
            return Err(problem(format!("is not in a cgroup v2 hierarchy{hint}")));
        }
        return Ok(Cgroup {
            fd: directory.into(),
            label: path.display().to_string(),
        });
    }
    let mounted = root().and_then(|root| Some((File::open(&root).ok()?, root)));
    let is_root = |directory: &File| {
        let found = directory.metadata();
        found.is_ok_and(|found| is_hierarchy_root(&found))
    };
    let (cover, mounted) = match mounted {
        Some((directory, root)) if is_root(&directory) => return Ok(of_mount(directory, &root)),
        Some((directory, root)) => {
            let cover = format!(": {} is covered by another mount", root.display());
            (cover, Some((directory, root)))
        }
        None => (String::new(), None),
    };
    match (mount_privately().map(File::from), mounted) {
        // In a cgroup namespace there is no more than that.
        (Ok(directory), Some((other, root))) if !is_root(&directory) => Ok(of_mount(other, &root)),
        (Err(_), Some((other, root))) => Ok(of_mount(other, &root)),
        (Ok(directory), _) => Ok(Cgroup {
            fd: directory.into(),
            label: format!("the cgroup v2 root (mounted privately{cover})"),
        }),
        (Err(source), None) => Err(SensorError::NoCgroup { source }),
    }
}

fn of_mount(directory: File, root: &Path) -> Cgroup {
    Cgroup {
        fd: directory.into(),
        label: root.display().to_string(),
    }
}

/// Whether the directory at `path` is another than the open one, or there is none.
pub(super) fn is_replaced(path: &Path, open: impl AsFd) -> bool {
    let identity = |found: Stat| (found.st_dev, found.st_ino);
    let now = stat(path).map(identity);
    now.ok() != fstat(open).map(identity).ok()
}

/// Mounts the hierarchy where nobody else sees it; the mount goes when the descriptor does.
fn mount_privately() -> io::Result<OwnedFd> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    // The mount's own descriptor is O_PATH, which links do not take on every kernel.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(&mount, ".", flags, Mode::empty())?)
}
