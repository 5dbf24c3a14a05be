//! A process in the cache: one record for each of its threads.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::{Process, name_of};
use crate::model::{ExecInfo, Printable, Task};

/// Bytes of cached records: about a thousand of usual size. See [`Process::bytes`].
pub(super) const MAX_CACHE: usize = 1 << 20;

/// Threads of one process in the cache.
pub(super) const MAX_THREADS: usize = 32;

/// Bytes of cached records of one process with more than one thread.
pub(super) const MAX_CACHE_PER_PROCESS: usize = 64 << 10;

/// A process in the cache. The record is read again when one of the keys differs.
#[derive(Debug)]
pub(super) struct CachedProcess {
    pub(super) start_ns: u64,
    pub(super) exec_info: Rc<ExecInfo>,
    pub(super) cgroup_id: Option<u64>,
    /// One record for each thread, credentials and user name, the last one identified last. Never
    /// empty.
    pub(super) threads: Vec<Rc<Process>>,
}

impl CachedProcess {
    pub(super) fn is_for(&self, task: &Task) -> bool {
        // Each execve(2) has an exec info of its own, which is kept while it is in the cache.
        let is_same = |info: &Rc<ExecInfo>| Rc::ptr_eq(&self.exec_info, info);
        Some(self.start_ns) == task.start_ns
            && task.exec_info.as_ref().is_some_and(is_same)
            && self.cgroup_id == task.cgroup_id
    }

    /// The record of the thread; None when there is none yet.
    pub(super) fn find(&mut self, task: &Task, user: &Option<Printable>) -> Option<Rc<Process>> {
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
    pub(super) fn derive(&mut self, task: &Task, user: &Option<Printable>) -> Option<Rc<Process>> {
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

    pub(super) fn bytes(&self) -> usize {
        let threads = self.threads.iter().map(|one| one.bytes());
        let info = &self.exec_info;
        let args = info.args.iter().flatten();
        let texts = info.exe.iter().chain(&info.execfn).chain(args);
        let texts = texts.map(|text| text.len() + size_of::<Vec<u8>>());
        size_of::<Self>() + threads.chain(texts).sum::<usize>()
    }
}
