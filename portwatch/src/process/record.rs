//! What is told of a process.

use std::cell::OnceCell;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::Container;
use crate::model::Printable;

/// A process, as far as it is known. Pid, comm, uid and gid come with the event and are there
/// even when the process is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// In the initial pid namespace.
    pub pid: u32,
    /// The thread that acted, when it is not the first.
    pub tid: Option<u32>,
    /// The parent's, at the time of the event.
    pub ppid: Option<u32>,
    /// The name of the thread that acted.
    pub comm: Printable,
    /// When the process started, by the host's clock.
    #[serde(serialize_with = "milliseconds")]
    pub started: Option<Timestamp>,
    /// The executable's path.
    pub exe: Option<Printable>,
    /// What is special about the executable.
    pub exe_flags: Vec<ExeFlag>,
    /// The script, when the executable is its interpreter by a `#!` line.
    pub script: Option<Printable>,
    /// The arguments, of which the first 4,096 bytes are read.
    pub cmdline: Option<Vec<Printable>>,
    /// The working directory.
    pub cwd: Option<Printable>,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// The user's name on this host.
    pub user: Option<Printable>,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// The user that logged in, by audit; stays the same through su and sudo.
    pub loginuid: Option<u32>,
    /// For another user than root: the capability that let it take the port, when it has it.
    pub capabilities: Option<Vec<&'static str>>,
    /// The path in the cgroup v2 hierarchy.
    pub cgroup: Option<Printable>,
    /// The systemd unit that the cgroup belongs to.
    pub unit: Option<Printable>,
    /// The container that the cgroup belongs to.
    pub container: Option<Container>,
    /// The parent, its parent and so on up to the first process.
    pub ancestors: Vec<Ancestor>,
    /// `CLOCK_BOOTTIME` nanoseconds in whole ticks, to tell who was there first; 0 when not known.
    #[serde(skip)]
    pub start_ns: u64,
    /// The whole as JSON: it is the most of a line, and the same on many.
    #[serde(skip)]
    pub(crate) json: Cached<Box<RawValue>>,
    /// What a line of text says of it.
    #[serde(skip)]
    pub(crate) text: Cached<String>,
}

/// What was made once of a value that does not change.
#[derive(Debug)]
pub(crate) struct Cached<T>(OnceCell<T>);

impl<T> Cached<T> {
    const fn new() -> Self {
        Self(OnceCell::new())
    }

    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> T) -> &T {
        self.0.get_or_init(make)
    }
}

impl<T> Clone for Cached<T> {
    /// The copy is there to be changed.
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<T> PartialEq for Cached<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Cached<T> {}

impl Process {
    /// As JSON; None when that fails, which a map of strings does not.
    #[must_use]
    pub fn json(&self) -> Option<&RawValue> {
        if self.json.0.get().is_none() {
            let made = serde_json::value::to_raw_value(self).ok()?;
            let _ = self.json.0.set(made);
        }
        self.json.0.get().map(|json| &**json)
    }

    /// A process of which nothing is known but what identifies it.
    #[must_use]
    pub const fn bare(pid: u32, comm: Printable, uid: u32, gid: u32) -> Self {
        Self {
            pid,
            tid: None,
            ppid: None,
            comm,
            started: None,
            exe: None,
            exe_flags: Vec::new(),
            script: None,
            cmdline: None,
            cwd: None,
            uid,
            user: None,
            gid,
            loginuid: None,
            capabilities: None,
            cgroup: None,
            unit: None,
            container: None,
            ancestors: Vec::new(),
            start_ns: 0,
            json: Cached::new(),
            text: Cached::new(),
        }
    }
}

/// What is special about an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExeFlag {
    /// It has been unlinked since it was started.
    Deleted,
    /// It never was in a file system: memfd_create(2).
    Memfd,
}

impl ExeFlag {
    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Memfd => "memfd",
        }
    }
}

/// A process that a process came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ancestor {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its name.
    pub comm: Printable,
    /// The executable's path.
    pub exe: Option<Printable>,
}

/// RFC 3339 in UTC. /proc knows no more than hundredths of a second.
fn milliseconds<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&format_args!("{time:.3}")),
        None => serializer.serialize_none(),
    }
}
