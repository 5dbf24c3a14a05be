//! Who did it: what the event carries and what /proc still shows.

mod netns;
mod users;

use std::{io::Read as _, os::unix::ffi::OsStrExt, path::Path};

use procfs::process::Process as ProcEntry;
use serde::Serialize;

pub use self::netns::{Namespaces, inode_of as netns_inode_of};
use self::users::Users;
use crate::{event::Task, printable::Printable};

/// A process, as far as it is known. Pid, comm, uid and gid come with the event and are there
/// even when the process is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// In the initial pid namespace.
    pub pid: u32,
    /// The parent's, at the time of the event.
    pub ppid: Option<u32>,
    /// The name of the thread that acted.
    pub comm: Printable,
    /// The executable's path, as the kernel has it (`(deleted)` behind it when it is gone).
    pub exe: Option<Printable>,
    /// The arguments, of which the first 4,096 bytes are read.
    pub cmdline: Option<Vec<Printable>>,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// The user's name on this host.
    pub user: Option<Printable>,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// The path in the cgroup v2 hierarchy.
    pub cgroup: Option<Printable>,
    /// The systemd unit that the cgroup belongs to.
    pub unit: Option<Printable>,
    /// The container's id.
    pub container: Option<Printable>,
}

/// Bytes of a command line that are read.
const CMDLINE_BYTES: u64 = 4096;

/// Looks processes up; user names are cached.
#[derive(Debug, Default)]
pub struct Processes {
    users: Users,
}

impl Processes {
    /// Who `task` is: what it carries, joined with what /proc shows now.
    pub fn identify(&mut self, task: &Task) -> Process {
        let mut process = Process {
            pid: task.pid,
            ppid: None,
            comm: Printable::from_bytes(&task.comm),
            exe: None,
            cmdline: None,
            uid: task.uid,
            user: self.users.name(task.uid),
            gid: task.gid,
            cgroup: None,
            unit: None,
            container: None,
        };
        let Some(entry) = i32::try_from(task.pid)
            .ok()
            .and_then(|pid| ProcEntry::new(pid).ok())
        else {
            return process;
        };
        process.ppid = entry
            .stat()
            .ok()
            .and_then(|stat| u32::try_from(stat.ppid).ok());
        process.exe = entry
            .exe()
            .ok()
            .map(|path| Printable::from(path.as_os_str()));
        process.cmdline = cmdline(&entry);
        process.cgroup = cgroup(&entry);
        process.unit = process.cgroup.as_deref().and_then(unit);
        process
    }

    /// The process with that pid as /proc shows it, without an event that speaks of it.
    pub fn look_up(&mut self, entry: &ProcEntry) -> Option<Process> {
        let status = entry.status().ok()?;
        let comm = std::fs::read(format!("/proc/{}/comm", entry.pid())).ok()?;
        Some(self.identify(&Task {
            pid: u32::try_from(entry.pid()).ok()?,
            tid: u32::try_from(entry.pid()).ok()?,
            uid: status.ruid,
            gid: status.rgid,
            comm: comm.strip_suffix(b"\n").unwrap_or(&comm).to_vec(),
        }))
    }
}

/// None when it cannot be read and for kernel threads, which have none.
fn cmdline(entry: &ProcEntry) -> Option<Vec<Printable>> {
    let mut bytes = Vec::new();
    entry
        .open_relative("cmdline")
        .ok()?
        .take(CMDLINE_BYTES)
        .read_to_end(&mut bytes)
        .ok()?;
    if bytes.is_empty() {
        return None;
    }
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    Some(
        bytes
            .split(|byte| *byte == 0)
            .map(Printable::from_bytes)
            .collect(),
    )
}

/// The path in the v2 hierarchy, which is number 0 in proc_pid_cgroup(5).
fn cgroup(entry: &ProcEntry) -> Option<Printable> {
    let mut bytes = Vec::new();
    entry
        .open_relative("cgroup")
        .ok()?
        .read_to_end(&mut bytes)
        .ok()?;
    let path = bytes
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))?;
    Some(Printable::from_bytes(path))
}

/// The innermost systemd unit that a cgroup path names (systemd.unit(5)).
fn unit(cgroup: &str) -> Option<Printable> {
    const KINDS: [&str; 5] = ["service", "scope", "socket", "mount", "swap"];
    cgroup
        .rsplit('/')
        .find(|name| {
            let kind = Path::new(name).extension().map(OsStrExt::as_bytes);
            KINDS.iter().any(|known| kind == Some(known.as_bytes()))
        })
        .map(Printable::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_innermost_one() {
        let cases = [
            ("/system.slice/x.service", Some("x.service")),
            ("/system.slice/ssh@3.service/sub", Some("ssh@3.service")),
            (
                "/user.slice/user-0.slice/user@0.service/app.slice/run-1.scope",
                Some("run-1.scope"),
            ),
            ("/user.slice/user-0.slice", None),
            ("/docker/0123", None),
            ("/", None),
        ];
        for (path, expected) in cases {
            assert_eq!(unit(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn this_process_is_found_with_all_that_proc_shows() {
        let task = Task {
            pid: std::process::id(),
            tid: 0,
            uid: 0,
            gid: 0,
            comm: b"tests".to_vec(),
        };
        let process = Processes::default().identify(&task);
        let exe = std::env::current_exe().unwrap();
        assert_eq!(process.exe.as_deref(), exe.to_str());
        assert_eq!(process.ppid, Some(std::os::unix::process::parent_id()));
        let arguments: Vec<String> = std::env::args().collect();
        let cmdline: Vec<String> = process
            .cmdline
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(cmdline, arguments);
        assert_eq!(process.user.as_deref(), Some("root"));
    }

    #[test]
    fn a_process_that_is_gone_keeps_what_its_event_carried() {
        // Above the kernel's limit, so nobody has it.
        let task = Task {
            pid: 1 << 30,
            tid: 1 << 30,
            uid: 4_000_000,
            gid: 7,
            comm: b"gone".to_vec(),
        };
        let process = Processes::default().identify(&task);
        assert_eq!(
            (process.pid, process.uid, process.gid),
            (1 << 30, 4_000_000, 7)
        );
        assert_eq!(&*process.comm, "gone");
        assert_eq!(
            (process.ppid, process.exe, process.cmdline),
            (None, None, None)
        );
        assert_eq!((process.user, process.cgroup), (None, None));
    }
}
