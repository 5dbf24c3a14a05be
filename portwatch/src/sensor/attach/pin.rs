//! Keeps the programs that deny in the kernel beyond the agent's end: for those who would rather
//! have a service fail than a forbidden port taken.
#![forbid(unsafe_code)]

use std::{fs, io, os::fd::AsFd, path::Path};

use aya::programs::{
    CgroupAttachMode, CgroupSock, Program, ProgramError,
    links::{FdLink, PinnedLink},
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::sensor::SensorError;

/// The root of the BPF file system, and the directory in it where the links are pinned.
const ROOT: &str = "/sys/fs/bpf";
const DIRECTORY: &str = "/sys/fs/bpf/portwatch";

/// The programs that deny.
pub(in crate::sensor) const PROGRAMS: [&str; 2] = ["post_bind4", "post_bind6"];

/// Attaches a program with a link that outlives the agent, in place of one of an earlier run.
pub(in crate::sensor) fn attach(
    name: &'static str,
    program: &mut Program,
    cgroup: impl AsFd,
) -> Result<PinnedLink, SensorError> {
    let problem = |error: &dyn std::error::Error| {
        SensorError::kernel("pinning the programs that deny", error)
    };
    let is_bpffs = statfs(ROOT).is_ok_and(|root| root.filesystem_type() == BPF_FS_MAGIC);
    if !is_bpffs {
        let hint = format!("{ROOT} is not a BPF file system: mount -t bpf bpf {ROOT}");
        return Err(problem(&io::Error::other(hint)));
    }
    fs::create_dir_all(DIRECTORY).map_err(|error| problem(&error))?;
    let link = link(program, cgroup).map_err(|error| SensorError::attach(name, &error))?;
    let link = FdLink::try_from(link).map_err(|error| problem(&error))?;
    // After the new one is attached, so that there is no gap between the two.
    let path = Path::new(DIRECTORY).join(name);
    remove(&path).map_err(|error| problem(&error))?;
    link.pin(path).map_err(|error| problem(&error))
}

fn link(
    program: &mut Program,
    cgroup: impl AsFd,
) -> Result<aya::programs::cgroup_sock::CgroupSockLink, ProgramError> {
    let program: &mut CgroupSock = program.try_into()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    program.take_link(id)
}

/// Whether an earlier run has pinned anything.
#[must_use]
pub fn is_pinned() -> bool {
    PROGRAMS
        .iter()
        .any(|name| Path::new(DIRECTORY).join(name).exists())
}

/// Removes what an earlier run has pinned: nothing is denied any more. Whether there was any.
///
/// # Errors
///
/// The kernel's.
pub fn unpin() -> io::Result<bool> {
    let mut any = false;
    for name in PROGRAMS {
        any |= remove(&Path::new(DIRECTORY).join(name))?;
    }
    Ok(any)
}

fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
