//! Processes: what an event carries, what the BPF programs read at that moment, and what /proc
//! still shows. Each text from outside is limited in bytes when it is read.
#![forbid(unsafe_code)]

mod cgroup;
mod container;
mod entry;
mod record;
mod users;

use std::{rc::Rc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

use self::{cgroup::Cgroups, entry::ProcEntry, users::Users};
pub use self::{
    container::Container,
    entry::is_running,
    record::{Ancestor, ExeFlag, Process},
};
use crate::{
    model::{ExecInfo, Printable, Task},
    util::ByteBounded,
};

/// Bytes of a path: `PATH_MAX` in include/uapi/linux/limits.h.
const MAX_PATH: usize = 4096;

/// Bytes of a command line, with one for each separator.
const MAX_CMDLINE: usize = 4096;

/// Bytes of a thread's name (`proc_task_name` in fs/proc/array.c).
const MAX_COMM: usize = 64;

/// Ancestors that are reported.
const MAX_ANCESTORS: usize = 16;

/// Bytes of cached records: about a thousand of usual size. See [`Process::bytes`].
const MAX_CACHE: usize = 2 << 20;

/// Threads of one process in the cache.
const MAX_THREADS: usize = 32;

/// Bytes of cached records of one process with more than one thread.
const MAX_CACHE_PER_PROCESS: usize = 64 << 10;

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
    /// By process id.
    cache: ByteBounded<u32, CachedProcess>,
}

/// A process in the cache. The record is read again when one of the keys differs.
#[derive(Debug)]
struct CachedProcess {
    start_ns: u64,
    exec_info: Option<Rc<ExecInfo>>,
    cgroup_id: Option<u64>,
    /// One record for each thread, credentials and user name, the last one identified last. Never
    /// empty.
    threads: Vec<Rc<Process>>,
}

impl CachedProcess {
    fn is_for(&self, task: &Task) -> bool {
        let address = |info: &Option<Rc<ExecInfo>>| info.as_ref().map(Rc::as_ptr);
        Some(self.start_ns) == task.start_ns
            && address(&self.exec_info) == address(&task.exec_info)
            && self.cgroup_id == task.cgroup_id
    }

    /// The record of the thread; None when there is none yet.
    fn find(&mut self, task: &Task, user: &Option<Printable>) -> Option<Rc<Process>> {
        let (tid, comm) = name_of(task);
        let index = self.threads.iter().position(|one| {
            (one.tid, &one.comm) == (tid, &comm)
                && (one.uid, one.gid) == (task.uid, task.gid)
                && one.user == *user
        })?;
        let process = self.threads.remove(index);
        self.threads.push(Rc::clone(&process));
        Some(process)
    }

    /// A record of the thread, made from that of another one; None when the process must be read.
    fn derive(&mut self, task: &Task, user: &Option<Printable>) -> Option<Rc<Process>> {
        let (tid, comm) = name_of(task);
        let mut threads = self.threads.iter();
        let other = threads.find(|one| (one.uid, one.gid) == (task.uid, task.gid))?;
        let process = Rc::new(Process {
            tid,
            comm,
            user: user.clone(),
            ..Process::clone(other)
        });
        // Outdated when the user has another name by now.
        self.threads
            .retain(|one| one.uid != task.uid || one.user == *user);
        self.threads.push(Rc::clone(&process));
        while self.threads.len() > 1
            && (self.threads.len() > MAX_THREADS || self.bytes() > MAX_CACHE_PER_PROCESS)
        {
            self.threads.remove(0);
        }
        Some(process)
    }

    fn bytes(&self) -> usize {
        let threads = self.threads.iter().map(|one| one.bytes());
        let exec_info = self.exec_info.iter().map(|info| {
            let args = info.args.iter().flatten();
            let texts = info.exe.iter().chain(&info.execfn).chain(args);
            texts
                .map(|text| text.len() + size_of::<Vec<u8>>())
                .sum::<usize>()
        });
        size_of::<Self>() + threads.chain(exec_info).sum::<usize>()
    }
}

impl Default for Processes {
    /// Never blocks for a name service.
    fn default() -> Self {
        Self {
            users: Users::non_blocking(),
            cgroups: Cgroups::default(),
            cache: ByteBounded::new(MAX_CACHE),
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
    /// the same process now.
    pub fn identify(&mut self, task: &Task, time: Timestamp) -> Rc<Process> {
        let Some(start_ns) = task.start_ns else {
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
            exec_info: task.exec_info.clone(),
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
        Some(process)
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
        process.capabilities =
            (task.uid != 0 && entry.may_bind()).then(|| vec!["CAP_NET_BIND_SERVICE"]);
        self.set_cgroup(process, entry.cgroups(), task);
        process.ancestors = ancestors(process.ppid, entry.start_ns());
    }

    /// Adds the cgroup that /proc shows, or that of the event where the process has ended.
    fn set_cgroup(&mut self, process: &mut Process, mut cgroups: Vec<u8>, task: &Task) {
        if cgroup::in_v2(&cgroups).is_none()
            && let Some(path) = task.cgroup_id.and_then(|id| self.cgroups.path(id))
        {
            cgroups.extend_from_slice(b"0::");
            cgroups.extend_from_slice(&path);
        }
        process.cgroup = cgroup::in_v2(&cgroups).map(|path| limited(path, MAX_PATH));
        process.unit = cgroup::unit(&cgroups);
        process.container = container::of(&cgroups);
    }

    /// Adds what the BPF programs read of a process that has ended.
    fn fill_from_exec_info(&mut self, process: &mut Process, task: &Task) {
        if let Some(exec_info) = task.exec_info.as_deref() {
            set_exec_info(process, exec_info);
        }
        self.set_cgroup(process, Vec::new(), task);
        if let Some(start_ns) = task.start_ns {
            process.ancestors = ancestors(process.ppid, start_ns);
        }
    }
}

/// The thread id, unless it is the main thread, and the thread's name.
fn name_of(task: &Task) -> (Option<u32>, Printable) {
    let tid = (task.tid != task.pid).then_some(task.tid);
    (tid, limited(&task.comm, MAX_COMM))
}

/// Escapes the first `max` bytes.
fn limited(bytes: &[u8], max: usize) -> Printable {
    Printable::from_bytes(bytes.get(..max).unwrap_or(bytes))
}

/// Adds executable, script and arguments.
fn set_exec_info(process: &mut Process, info: &ExecInfo) {
    process.exe = info.exe.as_deref().map(|exe| limited(exe, MAX_PATH));
    process.exe_flags.clear();
    if info.deleted {
        process.exe_flags.push(ExeFlag::Deleted);
    }
    let is_memfd = |exe: &[u8]| exe.starts_with(b"/memfd:");
    if info.deleted && info.exe.as_deref().is_some_and(is_memfd) {
        process.exe_flags.push(ExeFlag::Memfd);
    }
    process.cmdline = info.args.as_deref().map(cmdline);
    process.script = script(info, process.cwd.as_deref());
}

/// The arguments, cut after [`MAX_CMDLINE`] bytes in total.
fn cmdline(args: &[Vec<u8>]) -> Vec<Printable> {
    let mut left = MAX_CMDLINE;
    let mut words = Vec::new();
    for arg in args {
        if left == 0 {
            break;
        }
        words.push(limited(arg, left));
        left = left.saturating_sub(arg.len() + 1);
    }
    words
}

/// The script in execve(2), where the executable is its interpreter. The kernel inserts the
/// interpreter and at most one argument before the script's name (fs/binfmt_script.c).
fn script(info: &ExecInfo, cwd: Option<&str>) -> Option<Printable> {
    let (execfn, args) = (info.execfn.as_ref()?, info.args.as_ref()?);
    let [interpreter, rest @ ..] = args.as_slice() else {
        return None;
    };
    let is_argument = rest.iter().take(2).any(|word| word == execfn);
    if !is_argument || interpreter == execfn || info.exe.as_ref() == Some(execfn) {
        return None;
    }
    let name = limited(execfn, MAX_PATH);
    match cwd {
        Some(cwd) if !name.starts_with('/') => {
            let name = name.strip_prefix("./").unwrap_or(&name);
            let path = format!("{}/{name}", cwd.trim_end_matches('/'));
            Some(Printable::from(path.as_str()))
        }
        _ => Some(name),
    }
}

/// The parents of a process that started at `start_ns`, up to the first that has ended.
fn ancestors(mut parent: Option<u32>, mut start_ns: u64) -> Vec<Ancestor> {
    let mut chain = Vec::new();
    while chain.len() < MAX_ANCESTORS
        && let Some(pid) = parent.filter(|pid| *pid != 0)
        && let Some(entry) = ProcEntry::open(pid)
        // A parent is older than its child; a younger process has reused the pid.
        && entry.start_ns() <= start_ns
    {
        start_ns = entry.start_ns() + *entry::TICK_NS;
        chain.push(Ancestor {
            pid,
            comm: limited(entry.comm(), MAX_COMM),
            exe: entry.exe().0.map(|exe| limited(&exe, MAX_PATH)),
        });
        parent = Some(entry.ppid());
    }
    chain
}

/// The host's clock when `CLOCK_BOOTTIME` was at that many nanoseconds.
fn since_boot(nanoseconds: u64) -> Option<Timestamp> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let now = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    let then = Timestamp::now().as_nanosecond() - now + i128::from(nanoseconds);
    Timestamp::from_nanosecond(then).ok()
}

#[cfg(test)]
mod tests;
