//! One process in /proc. Its directory is opened once, so that everything read through it is of the
//! same process even when the pid is reused.

use std::{
    fs::File,
    io::Read as _,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    sync::LazyLock,
};

use nix::unistd::{SysconfVar, sysconf};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, readlinkat_raw, statat};

use super::{MAX_CMDLINE, MAX_CWD, verify};
use crate::{
    linux::stat::{Stat, Status},
    model::{ExecInfo, FileId, Printable},
};

/// Bytes of a path: `PATH_MAX` in include/uapi/linux/limits.h.
const MAX_PATH: usize = 4096;

/// Nanoseconds of a clock tick, the unit of the start time in proc_pid_stat(5).
pub(super) static TICK_NS: LazyLock<u64> = LazyLock::new(|| {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    1_000_000_000 / u64::try_from(ticks).unwrap_or(100).max(1)
});

/// Whether the process that started at `start_ns` (as in [`ProcEntry::start_ns`]) still has `pid`.
/// True for a zombie, too.
pub fn is_running(pid: u32, start_ns: u64) -> bool {
    ProcEntry::open(pid).is_some_and(|entry| entry.started_at(start_ns))
}

pub(super) struct ProcEntry {
    directory: OwnedFd,
    stat: Stat,
}

impl ProcEntry {
    /// None when there is no such process.
    pub(super) fn open(pid: u32) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
        let stat = Stat::parse(&read(&directory, "stat", 4096)?)?;
        Some(Self { directory, stat })
    }

    pub(super) const fn ppid(&self) -> u32 {
        self.stat.ppid
    }

    /// The main thread's name: any bytes but NUL.
    pub(super) fn comm(&self) -> &[u8] {
        &self.stat.comm
    }

    /// When the process started: `CLOCK_BOOTTIME` nanoseconds, in whole ticks.
    pub(super) fn start_ns(&self) -> u64 {
        self.stat.start_ticks.saturating_mul(*TICK_NS)
    }

    /// Whether the process started at `start_ns`, to the tick.
    pub(super) fn started_at(&self, start_ns: u64) -> bool {
        self.stat.start_ticks == start_ns / *TICK_NS
    }

    pub(super) fn status(&self) -> Option<Status> {
        // Holds a line of up to `NGROUPS_MAX` (65,536) group ids.
        Status::parse(&read(&self.directory, "status", 1 << 20)?)
    }

    /// Whether it may bind below `ip_unprivileged_port_start`, at least in its own user namespace.
    pub(super) fn may_bind(&self) -> bool {
        /// `CAP_NET_BIND_SERVICE` in include/uapi/linux/capability.h.
        const NET_BIND_SERVICE: u64 = 1 << 10;
        self.status()
            .is_some_and(|status| status.effective & NET_BIND_SERVICE != 0)
    }

    /// None without a login (`AUDIT_UID_UNSET`), and without audit.
    pub(super) fn loginuid(&self) -> Option<u32> {
        let text = String::from_utf8(read(&self.directory, "loginuid", 32)?).ok()?;
        text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
    }

    pub(super) fn cwd(&self) -> Option<Printable> {
        Some(Printable::limited(&self.link("cwd")?, MAX_CWD))
    }

    /// The text of proc_pid_cgroup(5).
    pub(super) fn cgroups(&self) -> Vec<u8> {
        read(&self.directory, "cgroup", 1 << 16).unwrap_or_default()
    }

    /// The executable's path, and whether it has been unlinked.
    pub(super) fn exe(&self) -> (Option<Vec<u8>>, bool) {
        let Some(path) = self.link("exe") else {
            return (None, false);
        };
        match path.strip_suffix(b" (deleted)") {
            // The name of an existing file can end so, too.
            Some(name) if self.is_unlinked() => (Some(name.to_vec()), true),
            _ => (Some(path), false),
        }
    }

    fn is_unlinked(&self) -> bool {
        statat(&self.directory, "exe", AtFlags::empty()).map_or(true, |file| file.st_nlink == 0)
    }

    /// The executable's identity.
    pub(super) fn exe_file(&self) -> Option<FileId> {
        verify::file_id(&self.directory, "exe")
    }

    /// The inode of its namespace of that kind, as in namespaces(7).
    fn namespace(&self, kind: &str) -> Option<u64> {
        let name = format!("ns/{kind}");
        let namespace = statat(&self.directory, name, AtFlags::empty()).ok()?;
        Some(namespace.st_ino)
    }

    /// The program that it executes now.
    pub(super) fn exec_info(&self) -> ExecInfo {
        let (exe, deleted) = self.exe();
        let exe_file = self.exe_file();
        let (args, args_unread) = self.args();
        ExecInfo {
            exe,
            deleted,
            exe_file,
            execfn: self.execfn(),
            args,
            args_unread,
            mount_ns: self.namespace("mnt"),
            // After the executable: nothing returns from a user namespace of its own, where it can
            // change that.
            user_ns: self.namespace("user"),
            ..ExecInfo::default()
        }
    }

    /// The arguments, and how many bytes of them were not read. None when they cannot be read, and
    /// for a kernel thread.
    pub(super) fn args(&self) -> (Option<Vec<Vec<u8>>>, u64) {
        let bytes = read(&self.directory, "cmdline", MAX_CMDLINE as u64).unwrap_or_default();
        if bytes.is_empty() {
            return (None, 0);
        }
        let unread = match bytes.len() {
            MAX_CMDLINE => self.stat.args_bytes.saturating_sub(MAX_CMDLINE as u64),
            // A process can have made its arguments shorter (`get_mm_cmdline` in fs/proc/base.c).
            _ => 0,
        };
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        let args = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        (Some(args), unread)
    }

    /// The file name passed to execve(2): `AT_EXECFN` in getauxval(3).
    fn execfn(&self) -> Option<Vec<u8>> {
        const AT_EXECFN: u64 = 31;
        let vector = read(&self.directory, "auxv", 4096)?;
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).ok();
        let address = vector.chunks_exact(16).find_map(|pair| {
            let (key, value) = pair.split_at(8);
            (word(key)? == AT_EXECFN).then(|| word(value))?
        })?;
        let mut bytes = [0; 256];
        let memory = open(&self.directory, "mem")?;
        // The name lies at the end of the stack, so that the read can be short.
        let len = memory.read_at(&mut bytes, address).ok()?;
        let name = bytes.get(..len)?.split(|byte| *byte == 0).next()?;
        Some(name.to_vec())
    }

    /// The target of a link. The kernel gives no longer one than `PATH_MAX` (`do_proc_readlink` in
    /// fs/proc/base.c).
    fn link(&self, name: &str) -> Option<Vec<u8>> {
        let mut target = [MaybeUninit::uninit(); MAX_PATH];
        let (target, _) = readlinkat_raw(&self.directory, name, &mut target).ok()?;
        Some(target.to_vec())
    }
}

fn open(directory: &OwnedFd, name: &str) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
        .ok()
        .map(File::from)
}

fn read(directory: &OwnedFd, name: &str, limit: u64) -> Option<Vec<u8>> {
    // /proc does not report sizes; most files fit.
    let mut bytes = Vec::with_capacity(512);
    let file = open(directory, name)?;
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
