//! Whether the path of an executable is that of the same file on the host.
//!
//! A user can arrange mounts in a mount namespace of its own, so that any file is at any path, and in
//! a user namespace of its own change which file /proc shows as the executable
//! (`prctl_set_mm_exe_file` in kernel/sys.c, Linux 6.18). The host is what process 1 is in, or,
//! where that cannot be read (it takes CAP_SYS_PTRACE), what this process is in.
#![forbid(unsafe_code)]

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, makedev, openat, statx};

use super::entry::ProcEntry;
use crate::{
    linux::mountinfo,
    model::{ExecInfo, FileId},
};

/// Whether a process that executes `info`, with its entry in /proc if it still runs, is in the host's
/// user namespace and its executable at that path on the host: in the host's mount namespace, or, as a
/// service with mounts of its own, because the host has the same file there.
pub(super) fn is_verified(info: &ExecInfo, entry: Option<&ProcEntry>) -> bool {
    let Some(exe) = &info.exe else {
        return false;
    };
    if info.deleted || !is_hosts("user", info.user_ns) {
        return false;
    }
    is_hosts("mnt", info.mount_ns) && info.exe_mount_ns == info.mount_ns
        || entry.is_some_and(|entry| is_hosts_file(exe, info, entry))
}

/// Whether a namespace of that kind is the host's.
fn is_hosts(kind: &str, namespace: Option<u64>) -> bool {
    let hosts = of_host(|process| fs::metadata(format!("/proc/{process}/ns/{kind}")).ok());
    namespace.is_some() && hosts.map(|hosts| hosts.ino()) == namespace
}

/// What `read` finds of the process that shows what the host is, by its name in /proc.
fn of_host<T>(read: impl Fn(&str) -> Option<T>) -> Option<T> {
    read("1").or_else(|| read("self"))
}

/// Whether the host has the executable of `entry` at the path `exe`.
fn is_hosts_file(exe: &[u8], info: &ExecInfo, entry: &ProcEntry) -> bool {
    let Some(file) = entry.exe_file() else {
        return false;
    };
    // It can be executing something else by now. The device is not compared: see `FileId`.
    if info.exe_file.is_none_or(|seen| seen.inode != file.inode) {
        return false;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |process: &str| {
        let path = format!("/proc/{process}/root");
        openat(CWD, path, flags, Mode::empty()).ok()
    };
    let Some(root) = of_host(open) else {
        return false;
    };
    let found = is_local(exe).then(|| resolve(root, exe)).flatten();
    found.is_some_and(|found| file_id(found, "") == Some(file))
}

/// The file systems on which looking a path up waits for nothing but the host's own disks.
const LOCAL: [&[u8]; 14] = [
    b"bcachefs",
    b"btrfs",
    b"erofs",
    b"ext2",
    b"ext3",
    b"ext4",
    b"f2fs",
    b"overlay",
    b"ramfs",
    b"rootfs",
    b"squashfs",
    b"tmpfs",
    b"xfs",
    b"zfs",
];

/// Whether every mount of the host on the way to that path is of a local file system: the path can be a
/// user's choice, and no server must be asked for it, nor anything be mounted.
fn is_local(path: &[u8]) -> bool {
    let path = Path::new(OsStr::from_bytes(path));
    let mounts = of_host(|process| Some(mountinfo::of(process)).filter(|all| !all.is_empty()));
    let mounts = mounts.unwrap_or_default();
    let mut on_the_way = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mount_point))
        .peekable();
    on_the_way.peek().is_some() && on_the_way.all(|mount| LOCAL.contains(&&*mount.fs_type))
}

/// Opens a path below a directory, step by step: no link is followed, and nothing leads upwards.
fn resolve(root: OwnedFd, path: &[u8]) -> Option<OwnedFd> {
    let mut names = path.strip_prefix(b"/")?.split(|byte| *byte == b'/');
    names.try_fold(root, |directory, name| {
        if matches!(name, b"" | b"." | b"..") {
            return None;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&directory, name, flags, Mode::empty()).ok()
    })
}

/// The identity of a file, without asking a server.
pub(super) fn file_id(directory: impl AsFd, name: &str) -> Option<FileId> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(directory, name, flags, StatxFlags::INO).ok()?;
    Some(FileId {
        device: makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        os::unix::fs::symlink,
        path::{Path, PathBuf},
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::process::{Process, Processes};

    /// A process that is killed when it is dropped.
    struct Running(Child);

    impl Running {
        /// Runs a script of sh that ends in `exec sleep` and prints a line before.
        fn start(launcher: &[&str], script: &str) -> Self {
            let [program, args @ ..] = launcher else {
                panic!("no program");
            };
            let mut child = Command::new(program)
                .args(args)
                .args(["/bin/sh", "-ec", script])
                .stdout(Stdio::piped())
                .spawn()
                .map(Self)
                .unwrap();
            let mut line = String::new();
            let output = child.0.stdout.take().unwrap();
            BufReader::new(output).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n", "{script}");
            child
        }

        /// The process once it executes `exe`.
        fn executing(&self, exe: &Path) -> Process {
            loop {
                let process = Processes::default().look_up(self.0.id()).unwrap();
                if process.exe.as_deref() == exe.to_str() {
                    return process;
                }
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleep() -> PathBuf {
        fs::canonicalize("/bin/sleep").unwrap()
    }

    #[test]
    fn a_path_is_verified_where_the_host_has_that_file_there() {
        let directory = tempfile::tempdir().unwrap();
        let (sleep, copy) = (sleep(), directory.path().join("copy"));
        fs::copy(&sleep, &copy).unwrap();
        let plain = format!("echo ready; exec {} 1000", sleep.display());
        let bound = format!(
            "mount --bind {} {}; {plain}",
            copy.display(),
            sleep.display()
        );
        let unshare = |option| ["unshare", option, "--"];
        for (what, launcher, script, verified) in [
            ("the host", &["env"][..], &plain, true),
            (
                "a service with mounts of its own",
                &unshare("--mount"),
                &plain,
                true,
            ),
            (
                "another file at the path",
                &unshare("--mount"),
                &bound,
                false,
            ),
            (
                "a user namespace of its own",
                &unshare("--user"),
                &plain,
                false,
            ),
            ("both", &["unshare", "-Urm", "--"], &bound, false),
        ] {
            let running = Running::start(launcher, script);
            let process = running.executing(&sleep);
            assert_eq!(process.exe_verified, verified, "{what}");
            let file = if script == &bound { &copy } else { &sleep };
            let file = fs::metadata(file).unwrap();
            let (device, inode) = (process.exe_device, process.exe_inode);
            assert_eq!(
                (device, inode),
                (Some(file.dev()), Some(file.ino())),
                "{what}"
            );
        }
    }

    #[test]
    fn a_file_of_a_foreign_mount_namespace_is_not_verified() {
        let directory = tempfile::tempdir().unwrap();
        let (sleep, copy) = (sleep(), directory.path().join("copy"));
        fs::copy(&sleep, &copy).unwrap();
        let bind = format!(
            "mount --bind {} {}; echo ready; exec {} 1000",
            copy.display(),
            sleep.display(),
            sleep.display()
        );
        let other = Running::start(&["unshare", "--mount", "--"], &bind);
        other.executing(&sleep);
        // On the host, by the other's root directory.
        let path = format!("/proc/{}/root{}", other.0.id(), sleep.display());
        let running = Running::start(&["env"], &format!("echo ready; exec {path} 1000"));
        let process = running.executing(&sleep);
        assert_eq!(process.exe_inode, Some(fs::metadata(&copy).unwrap().ino()));
        assert!(!process.exe_verified);
    }

    #[test]
    fn no_path_is_looked_up_that_is_a_link_or_leads_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        symlink(sleep(), &link).unwrap();
        let found = |path: &Path| {
            let (root, name) = (fs::File::open("/").unwrap(), path.as_os_str().as_bytes());
            let found = is_local(name).then(|| resolve(root.into(), name)).flatten();
            let inode = found
                .and_then(|found| file_id(found, ""))
                .map(|id| id.inode);
            inode.is_some() && inode == fs::metadata(path).ok().map(|file| file.ino())
        };
        assert!(fs::metadata(sleep()).is_ok() && found(&sleep()));
        for other in [
            &link,
            Path::new("/no/such/file"),
            Path::new("/proc/self/exe"),
            // Not a local file system's.
            Path::new("/proc/version"),
            Path::new("/usr/../etc/passwd"),
        ] {
            assert!(!found(other), "{}", other.display());
        }
    }
}
