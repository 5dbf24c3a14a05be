//! Who did it: what the event carries, what the kernel side read at that moment and what /proc
//! still shows.

mod cgroup;
mod container;
mod entry;
mod record;
mod users;

use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

use self::{cgroup::Cgroups, entry::Entry, users::Users};
pub use self::{
    container::Container,
    record::{Ancestor, ExeFlag, Process},
};
use crate::{
    model::{ExecInfo, Printable, Task},
    util::Bounded,
};

/// Ancestors that are named.
const ANCESTORS: usize = 16;

/// Processes that are remembered, so that those that act often are read once.
const PROCESSES: usize = 1024;

/// Threads of one process that are remembered.
const THREADS: usize = 32;

/// How far the two clocks that say when a process started and acted may be apart: a tick of
/// proc_pid_stat(5) and some.
const SLACK: SignedDuration = SignedDuration::from_millis(20);

/// Looks processes up.
#[derive(Debug)]
pub struct Processes {
    users: Users,
    cgroups: Cgroups,
    /// By process id.
    known: Bounded<u32, Known>,
}

/// A process that was read, and what must be the same for it to be the same.
#[derive(Debug)]
struct Known {
    start_ns: u64,
    image: Option<Rc<ExecInfo>>,
    /// As its threads were, the last one last; never none.
    threads: Vec<Rc<Process>>,
}

impl Default for Processes {
    fn default() -> Self {
        Self {
            users: Users::default(),
            cgroups: Cgroups::default(),
            known: Bounded::new(PROCESSES),
        }
    }
}

impl Processes {
    /// Who `task`, which acted at `time`, is: what it carries, joined with what /proc shows of the
    /// same process now.
    pub fn identify(&mut self, task: &Task, time: Timestamp) -> Rc<Process> {
        let Some(start_ns) = task.start_ns else {
            return Rc::new(self.read(task, time));
        };
        let image = |image: &Option<Rc<ExecInfo>>| image.as_ref().map(Rc::as_ptr);
        let known = self.known.get_mut(&task.pid).filter(|known| {
            known.start_ns == start_ns && image(&known.image) == image(&task.exec_info)
        });
        if let Some(Known { threads, .. }) = known {
            let tid = (task.tid != task.pid).then_some(task.tid);
            let comm = Printable::from_bytes(&task.comm);
            let is_it = |one: &&Rc<Process>| {
                (one.tid, &one.comm, one.uid, one.gid) == (tid, &comm, task.uid, task.gid)
            };
            if let Some(process) = threads.iter().find(is_it) {
                return Rc::clone(process);
            }
            let as_whom = |one: &&Rc<Process>| (one.uid, one.gid) == (task.uid, task.gid);
            if let Some(other) = threads.iter().find(as_whom) {
                let process = Rc::new(Process {
                    tid,
                    comm,
                    ..Process::clone(other)
                });
                if threads.len() >= THREADS {
                    threads.remove(0);
                }
                threads.push(Rc::clone(&process));
                return process;
            }
        }
        let process = Rc::new(self.read(task, time));
        let known = Known {
            start_ns,
            image: task.exec_info.clone(),
            threads: vec![Rc::clone(&process)],
        };
        self.known.put(task.pid, known);
        process
    }

    /// The process with that pid that was identified last, if it is still remembered.
    pub fn recall(&mut self, pid: u32) -> Option<Rc<Process>> {
        self.known.get(&pid)?.threads.last().map(Rc::clone)
    }

    /// The process with that pid as /proc shows it, without an event that speaks of it.
    pub fn look_up(&mut self, pid: u32) -> Option<Process> {
        let entry = Entry::open(pid)?;
        let (uid, gid) = entry.user()?;
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
        let mut process = self.bare(&task);
        self.fill(&mut process, &entry, &task);
        Some(process)
    }

    /// What the task carries, and nothing that must be looked for.
    fn bare(&mut self, task: &Task) -> Process {
        let image = task.exec_info.as_deref();
        let comm = Printable::from_bytes(&task.comm);
        Process {
            tid: (task.tid != task.pid).then_some(task.tid),
            ppid: image.map(|image| image.parent),
            started: task.start_ns.and_then(since_boot),
            user: self.users.name(task.uid),
            loginuid: image.and_then(|image| image.loginuid),
            ..Process::bare(task.pid, comm, task.uid, task.gid)
        }
    }

    fn read(&mut self, task: &Task, time: Timestamp) -> Process {
        let mut process = self.bare(task);
        // Another process can have the number by now.
        let entry = Entry::open(task.pid).filter(|entry| match task.start_ns {
            Some(start_ns) => entry.started_at(start_ns),
            None => since_boot(entry.start_ns())
                .is_none_or(|started| started.duration_since(time) <= SLACK),
        });
        match entry {
            Some(entry) => self.fill(&mut process, &entry, task),
            None => self.fill_from_image(&mut process, task),
        }
        process
    }

    /// Adds what is known of a process that is still there.
    fn fill(&mut self, process: &mut Process, entry: &Entry, task: &Task) {
        let image = task.exec_info.as_deref();
        process.ppid = process.ppid.or(Some(entry.ppid()));
        process.start_ns = entry.start_ns();
        process.started = process.started.or_else(|| since_boot(entry.start_ns()));
        if image.is_none() {
            process.loginuid = entry.loginuid();
        }
        process.cwd = entry.cwd();
        let read;
        let image = match image {
            Some(image) if image.exe.is_some() && image.args.is_some() => image,
            _ => {
                read = entry.image();
                &read
            }
        };
        set_image(process, image);
        process.capabilities =
            (task.uid != 0 && entry.may_bind()).then(|| vec!["CAP_NET_BIND_SERVICE"]);
        self.set_cgroup(process, entry.cgroups(), task);
        process.ancestors = ancestors(process.ppid, entry.start_ns());
    }

    /// Adds the cgroup by /proc, or by its number where the process has gone meanwhile.
    fn set_cgroup(&mut self, process: &mut Process, mut cgroups: Vec<u8>, task: &Task) {
        if cgroup::in_v2(&cgroups).is_none()
            && let Some(path) = task.cgroup_id.and_then(|id| self.cgroups.path(id))
        {
            cgroups.extend_from_slice(b"0::");
            cgroups.extend_from_slice(&path);
        }
        process.cgroup = cgroup::in_v2(&cgroups).map(Printable::from_bytes);
        process.unit = cgroup::unit(&cgroups);
        process.container = container::of(&cgroups);
    }

    /// Adds what is known of a process that is gone.
    fn fill_from_image(&mut self, process: &mut Process, task: &Task) {
        if let Some(image) = task.exec_info.as_deref() {
            set_image(process, image);
        }
        self.set_cgroup(process, Vec::new(), task);
        if let Some(start_ns) = task.start_ns {
            process.ancestors = ancestors(process.ppid, start_ns);
        }
    }
}

/// Adds executable, script and arguments.
fn set_image(process: &mut Process, image: &ExecInfo) {
    process.exe = image.exe.as_deref().map(Printable::from_bytes);
    process.exe_flags.clear();
    if image.deleted {
        process.exe_flags.push(ExeFlag::Deleted);
    }
    if image
        .exe
        .as_deref()
        .is_some_and(|exe| exe.starts_with(b"/memfd:"))
        && image.deleted
    {
        process.exe_flags.push(ExeFlag::Memfd);
    }
    let words = |words: &Vec<Vec<u8>>| {
        words
            .iter()
            .map(|word| Printable::from_bytes(word))
            .collect()
    };
    process.cmdline = image.args.as_ref().map(words);
    process.script = script(image, process.cwd.as_deref());
}

/// The script that the kernel was asked to execute: it puts the interpreter and its argument before
/// it (fs/binfmt_script.c).
fn script(image: &ExecInfo, cwd: Option<&str>) -> Option<Printable> {
    let (execfn, args) = (image.execfn.as_ref()?, image.args.as_ref()?);
    let [interpreter, rest @ ..] = args.as_slice() else {
        return None;
    };
    let at_its_place = rest.iter().take(2).any(|word| word == execfn);
    if !at_its_place || interpreter == execfn || image.exe.as_ref() == Some(execfn) {
        return None;
    }
    let name = Printable::from_bytes(execfn);
    match cwd {
        Some(cwd) if !name.starts_with('/') => {
            let name = name.strip_prefix("./").unwrap_or(&name);
            Some(Printable::from(
                format!("{}/{name}", cwd.trim_end_matches('/')).as_str(),
            ))
        }
        _ => Some(name),
    }
}

/// The chain of parents of a process that started at `start_ns`; it ends where one is gone.
fn ancestors(mut parent: Option<u32>, mut start_ns: u64) -> Vec<Ancestor> {
    let mut chain = Vec::new();
    while let Some(pid) = parent.filter(|pid| *pid != 0) {
        let Some(entry) = Entry::open(pid).filter(|_| chain.len() < ANCESTORS) else {
            break;
        };
        // A parent is older than its child; a younger one only has its number.
        if entry.start_ns() > start_ns {
            break;
        }
        start_ns = entry.start_ns() + *entry::TICK_NS;
        chain.push(Ancestor {
            pid,
            comm: Printable::from_bytes(entry.comm()),
            exe: entry.exe().0.as_deref().map(Printable::from_bytes),
        });
        parent = Some(entry.ppid());
    }
    chain
}

/// The time of the host's clock at which `CLOCK_BOOTTIME` showed that many nanoseconds.
fn since_boot(nanoseconds: u64) -> Option<Timestamp> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let now = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    let then = Timestamp::now().as_nanosecond() - now + i128::from(nanoseconds);
    Timestamp::from_nanosecond(then).ok()
}

#[cfg(test)]
mod tests;
