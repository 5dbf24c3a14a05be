//! Keeps the programs that deny in the kernel beyond the agent's end: for those who would rather
//! have a service fail than a forbidden port taken.
//!
//! A BPF file system is often writable by everybody (mode 1777 is the kernel's default), so the
//! directory of the pins is this user's alone, is held by descriptor, and is compared at each check.
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use aya::programs::links::{FdLink, PinnedLink};
use rustix::{
    fs::{
        AtFlags, Mode, OFlags, Stat, fchmod, fstat, fstatfs, mkdirat, open, openat, renameat,
        statat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use crate::{sensor::SensorError, util::console};

/// The root of the BPF file system, and the directory in it where the links are pinned.
const ROOT: &str = "/sys/fs/bpf";
const DIRECTORY: &str = "portwatch";

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u32 = 0xCAFE_4A11;

/// The programs that deny.
pub(in crate::sensor) const PROGRAMS: [&str; 4] = ["post_bind4", "post_bind6", "bind4", "bind6"];

/// How often a directory that is not ours is moved away before the start fails.
const ATTEMPTS: usize = 16;

/// The pinned links of the programs that deny.
pub(in crate::sensor) struct Pins {
    root: OwnedFd,
    directory: OwnedFd,
    links: Vec<Pin>,
}

struct Pin {
    name: &'static str,
    link: PinnedLink,
    /// The file's, so that another in its place is noticed.
    inode: u64,
}

impl Pins {
    /// Opens the directory of the pins, or creates it.
    pub(in crate::sensor) fn open() -> Result<Self, SensorError> {
        let opened = open_root().and_then(|root| {
            let directory = own_directory(&root)?;
            Ok((root, directory))
        });
        let (root, directory) = opened.map_err(|error| problem(&error))?;
        Ok(Self {
            root,
            directory,
            links: Vec::new(),
        })
    }

    /// Keeps a program's new link beyond the agent's end, in place of one of an earlier run or of this
    /// one: there is no gap between the two. `name` is one of [`PROGRAMS`].
    pub(in crate::sensor) fn replace(
        &mut self,
        name: &'static str,
        link: FdLink,
    ) -> Result<(), SensorError> {
        self.links.retain(|pin| pin.name != name);
        self.pin(name, link)
    }

    /// Detaches a program, and one of that name of an earlier run.
    pub(in crate::sensor) fn detach(&mut self, name: &str) -> Result<(), SensorError> {
        self.links.retain(|pin| pin.name != name);
        remove(&self.directory, name)
            .map(drop)
            .map_err(|error| problem(&error))
    }

    /// Restores what is no longer pinned. The names of those that were not, each with the error where
    /// it could not be pinned: that link is gone.
    pub(in crate::sensor) fn check(&mut self) -> Vec<(&'static str, Option<SensorError>)> {
        let held = fstat(&self.directory).ok();
        let here = lookup(&self.root, DIRECTORY);
        if !same(held.as_ref(), here.as_ref())
            && let Ok(directory) = own_directory(&self.root)
        {
            self.directory = directory;
        }
        let (whole, broken): (Vec<Pin>, Vec<Pin>) = std::mem::take(&mut self.links)
            .into_iter()
            .partition(|pin| {
                lookup(&self.directory, pin.name).is_some_and(|file| file.st_ino == pin.inode)
            });
        self.links = whole;
        let mut changes = Vec::new();
        for Pin { name, link, .. } in broken {
            changes.push((name, self.pin(name, link.into()).err()));
        }
        changes
    }

    fn pin(&mut self, name: &'static str, link: FdLink) -> Result<(), SensorError> {
        remove(&self.directory, name).map_err(|error| problem(&error))?;
        let path = format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd());
        let link = link.pin(path).map_err(|error| problem(&error))?;
        let inode = lookup(&self.directory, name).map_or(0, |file| file.st_ino);
        self.links.push(Pin { name, link, inode });
        Ok(())
    }
}

fn problem(error: &dyn std::error::Error) -> SensorError {
    SensorError::kernel("pinning the programs that deny", error)
}

/// The BPF file system. Fails where others than its owner could rename what is in it.
fn open_root() -> io::Result<OwnedFd> {
    let root = open_directory(None, ROOT)?;
    if fstatfs(&root)?.f_type as u32 != BPF_FS_MAGIC {
        return Err(io::Error::other(format!(
            "{ROOT} is not a BPF file system: mount -t bpf -o mode=0700 bpf {ROOT}"
        )));
    }
    let status = fstat(&root)?;
    let mode = Mode::from_raw_mode(status.st_mode);
    let is_shared = mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX);
    if is_shared || !is_ours(&status) {
        return Err(io::Error::other(format!(
            "others can rename what is in {ROOT} (owner {}, mode {:o}): chown it to root, chmod 0700",
            status.st_uid,
            mode.bits() & 0o7777
        )));
    }
    Ok(root)
}

/// The directory of the pins, which nobody else can write. What another user has put in its place is
/// moved away.
fn own_directory(root: &OwnedFd) -> io::Result<OwnedFd> {
    for attempt in 0..ATTEMPTS {
        match mkdirat(root, DIRECTORY, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        match open_directory(Some(root), DIRECTORY) {
            Ok(directory) if is_ours(&fstat(&directory)?) => {
                // An earlier version created it by the umask.
                fchmod(&directory, Mode::RWXU)?;
                return Ok(directory);
            }
            Ok(_) => {}
            Err(error) if is_other_file(&error) => {}
            Err(error) => return Err(error),
        }
        let owner = lookup(root, DIRECTORY).map_or_else(
            || "unknown".to_owned(),
            |found| format!("uid {}", found.st_uid),
        );
        let aside = format!("{DIRECTORY}-not-ours-{}-{attempt}", std::process::id());
        renameat(root, DIRECTORY, root, &aside)?;
        console::log(&format!(
            "{ROOT}/{DIRECTORY} was not a directory of this user (owner: {owner}); moved it to \
             {ROOT}/{aside}"
        ));
    }
    Err(io::Error::other(format!(
        "{ROOT}/{DIRECTORY} is put back by another user again and again: chmod 0700 {ROOT}"
    )))
}

fn open_directory(parent: Option<&OwnedFd>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(match parent {
        Some(parent) => openat(parent, path, flags, Mode::empty())?,
        None => open(path, flags, Mode::empty())?,
    })
}

/// Whether there is something that is not a directory.
fn is_other_file(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTDIR | libc::ELOOP | libc::EACCES)
    )
}

fn is_ours(status: &Stat) -> bool {
    status.st_uid == geteuid().as_raw() || status.st_uid == 0
}

fn lookup(directory: &OwnedFd, name: &str) -> Option<Stat> {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()
}

fn same(one: Option<&Stat>, other: Option<&Stat>) -> bool {
    let identity = |status: &Stat| (status.st_dev, status.st_ino);
    one.map(identity) == other.map(identity)
}

/// The directory of the pins, if it is there and is ours.
fn existing_directory() -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    let root = open_directory(None, ROOT)?;
    match open_directory(Some(&root), DIRECTORY) {
        Ok(directory) if is_ours(&fstat(&directory)?) => Ok(Some((root, directory))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_other_file(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an earlier run has pinned anything.
#[must_use]
pub fn is_pinned() -> bool {
    let directory = existing_directory().ok().flatten();
    directory.is_some_and(|(_, directory)| {
        PROGRAMS
            .iter()
            .any(|name| lookup(&directory, name).is_some())
    })
}

/// Removes what an earlier run has pinned: nothing is denied any more. Whether there was any.
///
/// # Errors
///
/// The kernel's.
pub fn unpin() -> io::Result<bool> {
    let Some((root, directory)) = existing_directory()? else {
        return Ok(false);
    };
    let mut any = false;
    for name in PROGRAMS {
        any |= remove(&directory, name)?;
    }
    // Stays where somebody has put something else into it.
    let _ = unlinkat(&root, DIRECTORY, AtFlags::REMOVEDIR);
    Ok(any)
}

/// Removes whatever has that name. Whether there was any.
fn remove(directory: &OwnedFd, name: &str) -> io::Result<bool> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {
            unlinkat(directory, name, AtFlags::REMOVEDIR).map_err(|error| {
                let path = format!("{ROOT}/{DIRECTORY}/{name}");
                io::Error::other(format!("{path} is a directory ({error}): remove it"))
            })?;
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}
