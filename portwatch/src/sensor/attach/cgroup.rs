//! Finds the cgroup to attach to: the root of the cgroup v2 hierarchy, wherever it is mounted.
#![forbid(unsafe_code)]

use std::{fs::File, io, os::fd::OwnedFd, path::Path};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

use crate::{linux::cgroup::root, sensor::SensorError};

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
    if let Some(root) = root()
        && let Ok(directory) = File::open(&root)
    {
        return Ok(Cgroup {
            fd: directory.into(),
            label: root.display().to_string(),
        });
    }
    let fd = mount_privately().map_err(|source| SensorError::NoCgroup { source })?;
    Ok(Cgroup {
        fd,
        label: "the cgroup v2 root (mounted privately)".into(),
    })
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
