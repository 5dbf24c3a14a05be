//! Processes: what an event carries, what the BPF programs read at that moment, and what /proc
//! still shows. Each text from outside is limited in bytes when it is read.
#![forbid(unsafe_code)]

mod ancestors;
mod cache;
mod cgroup;
mod claims;
mod container;
mod entry;
mod exec_info;
mod record;
mod runtime_state;
mod users;
mod verify;

use std::{rc::Rc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

use self::{
    ancestors::set_ancestors,
    cache::{CachedProcess, MAX_CACHE},
    cgroup::Cgroups,
    claims::Claims,
    entry::ProcEntry,
    exec_info::{begins_with, cmdline, set_exec_info},
    users::Users,
};
pub use self::{
    claims::Verified,
    container::Container,
    entry::is_running,
    record::{Ancestor, ExeFlag, Process},
};
use crate::{
    linux::cgroup::in_v2,
    model::{Printable, Task},
    util::ByteBounded,
};

/// Limits of a record, each in bytes of its JSON and without the note that something was cut: a
/// record takes at most 9 KiB. `comm` fits whole in whatever 15 bytes.
const MAX_COMM: usize = 15 * r"\\u{1b}".len();
const MAX_EXE: usize = 1024;
const MAX_SCRIPT: usize = 1024;
const MAX_CWD: usize = 512;
const MAX_CMDLINE: usize = 2048;
const MAX_CGROUP: usize = 768;
const MAX_UNIT: usize = 256;
const MAX_CONTAINER: usize = 160;
const MAX_ANCESTORS: usize = 1280;
const MAX_ANCESTOR_EXE: usize = 256;

/// By how much the two clocks of start time and event may differ: a tick of proc_pid_stat(5), and as
/// much again for reading them one after the other.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_millis(20);

/// How long a caller that may be blocked waits for user names in total.
const PATIENCE: Duration = Duration::from_secs(1);

/// What proc_pid_cgroup(5) and a line of passwd(5) name: for the fuzz targets.
#[cfg(feature = "testing")]
#[must_use]
pub fn parse_names(text: &[u8]) -> Vec<Printable> {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let container = container::of(text).map(|container| container.id);
    let names = [cgroup::unit(text), container, users::name_in(line, 0)];
    names.into_iter().flatten().collect()
}

/// Identifies processes, with a cache.
#[derive(Debug)]
pub struct Processes {
    users: Users,
    cgroups: Cgroups,
    claims: Claims,
    /// By process id.
    cache: ByteBounded<u32, CachedProcess>,
    /// The record that was read last, for its texts.
    last: Option<Box<Process>>,
}

impl Default for Processes {
    /// Never blocks for a name service.
    fn default() -> Self {
        Self {
            users: Users::non_blocking(),
            cgroups: Cgroups::default(),
            claims: Claims::default(),
            cache: ByteBounded::new(MAX_CACHE),
            last: None,
        }
    }
}

impl Processes {
    /// As [`default`](Self::default), but waits up to one second in total for a name service. Not for
    /// the thread that reads the ring buffer.
    #[must_use]
    pub fn patient() -> Self {
        Self {
            users: Users::patient(PATIENCE),
            ..Self::default()
        }
    }

    /// The process of `task`, which acted at `time`: what the task carries, and what /proc shows of
    /// the same process now. Without exec info it is read each time, since nothing then shows that it
    /// has called execve(2).
    pub fn identify(&mut self, task: &Task, time: Timestamp) -> Rc<Process> {
        let (Some(start_ns), Some(exec_info)) = (task.start_ns, &task.exec_info) else {
            return Rc::new(self.read(task, time));
        };
        let user = self.users.name(task.uid);
        let cached = self
            .cache
            .get_mut(&task.pid)
            .filter(|cached| cached.is_for(task));
        if let Some(cached) = cached {
            if let Some(process) = cached.find(task, &user) {
                return process;
            }
            if let Some(process) = cached.derive(task, &user) {
                let bytes = cached.bytes();
                self.cache.resize(&task.pid, bytes);
                return process;
            }
        }
        let process = Rc::new(self.read(task, time));
        let cached = CachedProcess {
            start_ns,
            exec_info: Rc::clone(exec_info),
            cgroup_id: task.cgroup_id,
            threads: vec![Rc::clone(&process)],
        };
        let bytes = cached.bytes();
        self.cache.put(task.pid, cached, bytes);
        process
    }

    /// The process with that pid that was identified last, if it is still in the cache.
    pub fn last_identified(&mut self, pid: u32) -> Option<Rc<Process>> {
        self.cache.get(&pid)?.threads.last().map(Rc::clone)
    }

    /// The process with that pid as /proc shows it; None when there is none.
    pub fn look_up(&mut self, pid: u32) -> Option<Process> {
        let entry = ProcEntry::open(pid)?;
        let status = entry.status()?;
        let (uid, gid) = (status.uid, status.gid);
        let task = Task {
            pid,
            tid: pid,
            uid,
            gid,
            comm: entry.comm().to_vec(),
            cgroup_id: None,
            start_ns: None,
            exec_info: None,
        };
        let mut process = self.minimal(&task);
        self.fill(&mut process, &entry, &task);
        self.share_texts(&mut process);
        Some(process)
    }

    /// A [slim](Process::slim) record with what was left out, while that process still runs that
    /// program; any other as it is.
    pub fn complete(&mut self, process: &Rc<Process>) -> Rc<Process> {
        if !process.is_slim {
            return Rc::clone(process);
        }
        let cached = self.last_identified(process.pid);
        let full = cached.filter(|full| full.is_same(process));
        let full = full.or_else(|| self.look_up(process.pid).map(Rc::new));
        match full.filter(|full| full.is_same(process)) {
            Some(full) => Rc::new(process.completed_by(&full)),
            None => Rc::clone(process),
        }
    }

    fn share_texts(&mut self, process: &mut Process) {
        if let Some(last) = &self.last {
            process.share_texts(last);
        }
        self.last = Some(Box::new(process.clone()));
    }

    /// The fields that the task carries.
    fn minimal(&mut self, task: &Task) -> Process {
        let exec_info = task.exec_info.as_deref();
        let (tid, comm) = name_of(task);
        Process {
            tid,
            ppid: exec_info.map(|info| info.parent),
            started: task.start_ns.and_then(since_boot),
            user: self.users.name(task.uid),
            loginuid: exec_info.and_then(|info| info.loginuid),
            ..Process::minimal(task.pid, comm, task.uid, task.gid)
        }
    }

    fn read(&mut self, task: &Task, time: Timestamp) -> Process {
        let mut process = self.minimal(task);
        // The pid can have been reused.
        let entry = ProcEntry::open(task.pid).filter(|entry| match task.start_ns {
            Some(start_ns) => entry.started_at(start_ns),
            None => since_boot(entry.start_ns())
                .is_none_or(|started| started.duration_since(time) <= CLOCK_TOLERANCE),
        });
        match entry {
            Some(entry) => self.fill(&mut process, &entry, task),
            None => self.fill_from_exec_info(&mut process, task),
        }
        self.share_texts(&mut process);
        process
    }

    /// Adds what /proc shows of a running process.
    fn fill(&mut self, process: &mut Process, entry: &ProcEntry, task: &Task) {
        let exec_info = task.exec_info.as_deref();
        process.ppid = process.ppid.or(Some(entry.ppid()));
        process.start_ns = entry.start_ns();
        process.started = process.started.or_else(|| since_boot(entry.start_ns()));
        if exec_info.is_none() {
            process.loginuid = entry.loginuid();
        }
        process.cwd = entry.cwd();
        let read;
        let exec_info = match exec_info {
            Some(info) if info.exe.is_some() && info.args.is_some() => info,
            _ => {
                read = entry.exec_info();
                &read
            }
        };
        set_exec_info(process, exec_info);
        process.exe_verified = verify::is_verified(exec_info, Some(entry));
        if exec_info.args_unread > 0
            && let (Some(args), unread) = entry.args()
            && begins_with(&args, exec_info.args.as_deref().unwrap_or_default())
        {
            process.cmdline = Some(cmdline(&args, unread));
        }
        process.capabilities =
            (task.uid != 0 && entry.may_bind()).then(|| vec!["CAP_NET_BIND_SERVICE"]);
        self.set_cgroup(process, entry.cgroups(), task);
        set_ancestors(process, entry.start_ns());
    }

    /// Adds the cgroup of the event, or that which /proc shows where the event's has been removed.
    fn set_cgroup(&mut self, process: &mut Process, mut cgroups: Vec<u8>, task: &Task) {
        if let Some(path) = task.cgroup_id.and_then(|id| self.cgroups.path(id)) {
            let others = cgroups.split_inclusive(|byte| *byte == b'\n');
            let others = others.filter(|line| !line.starts_with(b"0::"));
            cgroups = [
                &[b"0::", &*path, b"\n"].concat(),
                &*others.collect::<Vec<_>>().concat(),
            ]
            .concat();
        }
        process.cgroup = in_v2(&cgroups).map(|path| Printable::limited(path, MAX_CGROUP));
        process.unit = cgroup::unit(&cgroups);
        process.container = container::of(&cgroups);
        process.verified = self.claims.verify(&cgroups);
    }

    /// Adds what the BPF programs read of a process that has ended.
    fn fill_from_exec_info(&mut self, process: &mut Process, task: &Task) {
        if let Some(exec_info) = task.exec_info.as_deref() {
            set_exec_info(process, exec_info);
            process.exe_verified = verify::is_verified(exec_info, None);
        }
        self.set_cgroup(process, Vec::new(), task);
        if let Some(start_ns) = task.start_ns {
            set_ancestors(process, start_ns);
        }
    }
}

/// The thread id, unless it is the main thread, and the thread's name.
fn name_of(task: &Task) -> (Option<u32>, Printable) {
    let tid = (task.tid != task.pid).then_some(task.tid);
    (tid, Printable::limited(&task.comm, MAX_COMM))
}

/// The host's clock when `CLOCK_BOOTTIME` was at that many nanoseconds.
fn since_boot(nanoseconds: u64) -> Option<Timestamp> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let now = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    let then = Timestamp::now().as_nanosecond() - now + i128::from(nanoseconds);
    Timestamp::from_nanosecond(then).ok()
}

#[cfg(test)]
pub(crate) mod tests;
