//! Sockets that another program holds than the one that was reported: after execve(2), after a fork
//! whose parent exits, after a descriptor was passed on.

use std::rc::Rc;

use super::{Holder, TrackedSocket};
use crate::{inventory::MAX_HOLDERS, process::Process};

/// Who has a socket open now, compared with what was reported of it.
pub(super) struct Handover {
    /// Its owner from now on.
    pub(super) owner: Option<Rc<Process>>,
    /// A holder that runs a program of which nothing was reported: the first by age.
    pub(super) newcomer: Option<Rc<Process>>,
}

impl Handover {
    /// Compares `now`, the holders that a scan shows, the oldest first. Workers of the same program
    /// are no news.
    pub(super) fn of(socket: &TrackedSocket, now: &[Rc<Process>]) -> Self {
        let Some(owner) = &socket.process else {
            return Self {
                owner: now.first().cloned(),
                newcomer: None,
            };
        };
        let runs_reported = |process: &Process| {
            Program::of(owner).is(&Program::of(process))
                || socket
                    .holders
                    .iter()
                    .any(|holder| Program::of_holder(holder).is(&Program::of(process)))
        };
        let newcomer = now.iter().find(|one| !runs_reported(one)).cloned();
        let present = now.iter().find(|one| is_same_process(one, owner));
        let owner = match present {
            Some(present) if Program::of(owner).is(&Program::of(present)) => owner,
            Some(present) => present,
            // Holders past the limit are not shown.
            None if now.is_empty() || now.len() >= MAX_HOLDERS => owner,
            None => newcomer.as_ref().or_else(|| now.first()).unwrap_or(owner),
        };
        Self {
            owner: Some(Rc::clone(owner)),
            newcomer,
        }
    }
}

/// A pid alone can have been reused.
fn is_same_process(one: &Process, other: &Process) -> bool {
    let is_known = one.start_ns != 0 && other.start_ns != 0;
    one.pid == other.pid && (!is_known || one.start_ns == other.start_ns)
}

/// What a process runs.
struct Program<'a> {
    comm: &'a str,
    exe: Option<&'a str>,
    script: Option<&'a str>,
}

impl<'a> Program<'a> {
    fn of(process: &'a Process) -> Self {
        Self {
            comm: &process.comm,
            exe: process.exe.as_deref(),
            script: process.script.as_deref(),
        }
    }

    fn of_holder(holder: &'a Holder) -> Self {
        Self {
            comm: &holder.comm,
            exe: holder.exe.as_deref(),
            script: holder.script.as_deref(),
        }
    }

    /// By executable and script, or by name for a process that was gone before these were read.
    fn is(&self, other: &Self) -> bool {
        match (self.exe, other.exe) {
            (Some(own), Some(other_exe)) => own == other_exe && self.script == other.script,
            _ => self.comm == other.comm,
        }
    }
}
