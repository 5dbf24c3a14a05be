//! One process in /proc, opened once: what is read through it is of that process, whoever gets its
//! number later.

use std::{
    fs::File,
    io::Read as _,
    os::unix::{ffi::OsStringExt as _, fs::FileExt as _},
    sync::LazyLock,
};

use procfs::process::{Process as ProcEntry, Stat};

use crate::model::{ExecInfo, Printable};

/// Bytes of a command line that are read.
const CMDLINE_BYTES: u64 = 4096;

/// Nanoseconds of the ticks in which proc_pid_stat(5) counts: what is below is cut off.
pub(super) static TICK_NS: LazyLock<u64> =
    LazyLock::new(|| 1_000_000_000 / procfs::ticks_per_second());

pub(super) struct Entry {
    folder: ProcEntry,
    stat: Stat,
}

impl Entry {
    /// None when there is no such process.
    pub(super) fn open(pid: u32) -> Option<Self> {
        let folder = ProcEntry::new(i32::try_from(pid).ok()?).ok()?;
        let stat = folder.stat().ok()?;
        Some(Self { folder, stat })
    }

    pub(super) fn ppid(&self) -> u32 {
        u32::try_from(self.stat.ppid).unwrap_or(0)
    }

    pub(super) fn comm(&self) -> &[u8] {
        self.stat.comm.as_bytes()
    }

    /// When the process started: `CLOCK_BOOTTIME` nanoseconds, in whole ticks.
    pub(super) fn start_ns(&self) -> u64 {
        self.stat.starttime * *TICK_NS
    }

    /// Whether it is the process that started then.
    pub(super) fn started_at(&self, start_ns: u64) -> bool {
        self.stat.starttime == start_ns / *TICK_NS
    }

    /// Real user and group.
    pub(super) fn user(&self) -> Option<(u32, u32)> {
        let status = self.folder.status().ok()?;
        Some((status.ruid, status.rgid))
    }

    /// Whether it may bind below `ip_unprivileged_port_start`, at least in its own user namespace.
    pub(super) fn may_bind(&self) -> bool {
        /// `CAP_NET_BIND_SERVICE` in include/uapi/linux/capability.h.
        const NET_BIND_SERVICE: u64 = 1 << 10;
        self.folder
            .status()
            .is_ok_and(|status| status.capeff & NET_BIND_SERVICE != 0)
    }

    /// None when nobody logged in (`AUDIT_UID_UNSET`), and without audit.
    pub(super) fn loginuid(&self) -> Option<u32> {
        let text = String::from_utf8(self.file("loginuid", 32)?).ok()?;
        text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
    }

    pub(super) fn cwd(&self) -> Option<Printable> {
        let path = self.folder.cwd().ok()?;
        Some(Printable::from(path.as_os_str()))
    }

    /// proc_pid_cgroup(5), as it is.
    pub(super) fn cgroups(&self) -> Vec<u8> {
        self.file("cgroup", 1 << 16).unwrap_or_default()
    }

    /// The executable's path, and whether it has been unlinked.
    pub(super) fn exe(&self) -> (Option<Vec<u8>>, bool) {
        let Ok(path) = self.folder.exe() else {
            return (None, false);
        };
        let bytes = path.into_os_string().into_vec();
        match bytes.strip_suffix(b" (deleted)") {
            // A file can be called so, too.
            Some(name) if self.is_unlinked() => (Some(name.to_vec()), true),
            _ => (Some(bytes), false),
        }
    }

    fn is_unlinked(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let link = format!("/proc/{}/exe", self.folder.pid());
        std::fs::metadata(link).map_or(true, |file| file.nlink() == 0)
    }

    /// What it runs now.
    pub(super) fn image(&self) -> ExecInfo {
        let (exe, deleted) = self.exe();
        ExecInfo {
            exe,
            deleted,
            execfn: self.execfn(),
            args: self.args(),
            ..ExecInfo::default()
        }
    }

    /// None when they cannot be read, and for a thread of the kernel, which has none.
    fn args(&self) -> Option<Vec<Vec<u8>>> {
        let bytes = self.file("cmdline", CMDLINE_BYTES)?;
        if bytes.is_empty() {
            return None;
        }
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        Some(bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
    }

    /// The name that was given to execve(2): getauxval(3), `AT_EXECFN`.
    fn execfn(&self) -> Option<Vec<u8>> {
        const AT_EXECFN: u64 = 31;
        let vector = self.file("auxv", 4096)?;
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).ok();
        let address = vector.chunks_exact(16).find_map(|pair| {
            let (key, value) = pair.split_at(8);
            (word(key)? == AT_EXECFN).then(|| word(value))?
        })?;
        let mut bytes = [0; 256];
        let memory = File::open(format!("/proc/{}/mem", self.folder.pid())).ok()?;
        // At the end of the stack, so that less than all of it can be there.
        let len = memory.read_at(&mut bytes, address).ok()?;
        let name = bytes.get(..len)?.split(|byte| *byte == 0).next()?;
        Some(name.to_vec())
    }

    fn file(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        // Most have room in this, and /proc does not say beforehand how much they are.
        let mut bytes = Vec::with_capacity(512);
        let file = self.folder.open_relative(name).ok()?;
        file.take(limit).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}
