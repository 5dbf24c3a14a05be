//! The record of a process.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Container, Verified};
use crate::{model::Printable, util::ByteBounded};

/// A process, as far as it is known. Pid, comm, uid and gid come with the event and are known even
/// when the process has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// In the initial pid namespace.
    pub pid: u32,
    /// The thread that acted, when it is not the first.
    pub tid: Option<u32>,
    /// Process id of the parent at the time of the event.
    pub ppid: Option<u32>,
    /// The name of the thread that acted.
    pub comm: Printable,
    /// When the process started, by the host's clock.
    #[serde(serialize_with = "milliseconds")]
    pub started: Option<Timestamp>,
    /// The executable's path.
    pub exe: Option<Printable>,
    /// Special properties of the executable.
    pub exe_flags: Vec<ExeFlag>,
    /// The device of the executable's file system, in the encoding of makedev(3).
    pub exe_device: Option<u64>,
    /// The executable's inode number.
    pub exe_inode: Option<u64>,
    /// Whether `exe` is the path of that file on the host. Not so where the process could have chosen
    /// the path: in a mount or user namespace of its own. What `cmdline` shows, the process can choose
    /// anywhere.
    #[serde(skip)]
    pub exe_verified: bool,
    /// The script, when the executable is its interpreter by a `#!` line.
    pub script: Option<Printable>,
    /// The arguments; cut after 2,048 bytes of JSON.
    pub cmdline: Option<Vec<Printable>>,
    /// The working directory.
    pub cwd: Option<Printable>,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// The user's name on this host; None without one, and while a name service has not answered.
    pub user: Option<Printable>,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// The login user, by audit; su and sudo do not change it.
    pub loginuid: Option<u32>,
    /// Unless the user is root: the capabilities in effect that allow binds to system ports.
    pub capabilities: Option<Vec<&'static str>>,
    /// The path in the cgroup v2 hierarchy.
    pub cgroup: Option<Printable>,
    /// The systemd unit that the cgroup belongs to.
    pub unit: Option<Printable>,
    /// The container that the cgroup belongs to.
    pub container: Option<Container>,
    /// The parent, its parent and so on up to the first process.
    pub ancestors: Arc<[Ancestor]>,
    /// How many more there are, at least.
    pub ancestors_omitted: u32,
    /// What is certain about `unit`, `container` and `cgroup`.
    #[serde(skip)]
    pub verified: Verified,
    /// Start time: `CLOCK_BOOTTIME` nanoseconds in whole ticks; 0 when unknown.
    #[serde(skip)]
    pub start_ns: u64,
    /// Whether [`slim`](Self::slim) made it.
    #[serde(skip)]
    pub is_slim: bool,
    /// Identifies its JSON and its text among those that are kept.
    #[serde(skip)]
    pub(crate) id: RecordId,
}

/// Bytes of JSON and text that are kept: they are most of a line, and the same in many.
const MAX_RENDERED: usize = 512 << 10;

thread_local! {
    /// By [`RecordId`], and the last one that was given.
    static RENDERED: RefCell<(u64, ByteBounded<u64, Rendered>)> =
        RefCell::new((0, ByteBounded::new(MAX_RENDERED)));
}

/// A record in the formats in which it was written.
#[derive(Clone, Debug, Default)]
struct Rendered {
    json: Option<Rc<RawValue>>,
    text: Option<Rc<str>>,
}

/// Given when a record is written first.
#[derive(Debug, Default)]
pub(crate) struct RecordId(Cell<u64>);

impl Clone for RecordId {
    /// Another: a copy is made to be changed.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for RecordId {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for RecordId {}

impl Process {
    /// The record as JSON; None when serialization fails, which it does not for strings and numbers.
    #[must_use]
    pub fn json(&self) -> Option<Rc<RawValue>> {
        let mut rendered = self.rendered();
        if rendered.json.is_none() {
            rendered.json = Some(
                serde_json::value::to_raw_value(&Record::of(self))
                    .ok()?
                    .into(),
            );
            self.keep(rendered.clone());
        }
        rendered.json
    }

    /// The record in a line of text, which `make` makes.
    pub(crate) fn text(&self, make: impl FnOnce() -> String) -> Rc<str> {
        let mut rendered = self.rendered();
        if let Some(text) = rendered.text {
            return text;
        }
        let text: Rc<str> = make().into();
        rendered.text = Some(Rc::clone(&text));
        self.keep(rendered);
        text
    }

    fn rendered(&self) -> Rendered {
        RENDERED.with_borrow_mut(|(_, all)| all.get(&self.id.0.get()).cloned().unwrap_or_default())
    }

    fn keep(&self, rendered: Rendered) {
        let json = rendered.json.as_ref().map_or(0, |json| json.get().len());
        let text = rendered.text.as_ref().map_or(0, |text| text.len());
        RENDERED.with_borrow_mut(|(last, all)| {
            if self.id.0.get() == 0 {
                *last += 1;
                self.id.0.set(*last);
            }
            all.put(self.id.0.get(), rendered, json + text + 128);
        });
    }

    /// The keys of this record whose values are claims: nothing but a name that an unprivileged process
    /// can choose stands for them.
    #[must_use]
    pub fn unverified(&self) -> Vec<&'static str> {
        let verified = &self.verified;
        let unit = verified.unit.as_ref().map(|unit| &unit.name);
        let container = verified.container.as_ref().map(|container| &container.id);
        let claims = [
            ("exe", self.exe.is_some() && !self.exe_verified),
            ("cgroup", self.cgroup != verified.cgroup),
            ("unit", self.unit.as_ref() != unit),
            (
                "container",
                self.container.as_ref().map(|one| &one.id) != container,
            ),
        ];
        let claims = claims.into_iter().filter(|(_, is_claim)| *is_claim);
        claims.map(|(key, _)| key).collect()
    }

    /// A process of which only these fields are known.
    #[must_use]
    pub fn minimal(pid: u32, comm: Printable, uid: u32, gid: u32) -> Self {
        Self {
            pid,
            tid: None,
            ppid: None,
            comm,
            started: None,
            exe: None,
            exe_flags: Vec::new(),
            exe_device: None,
            exe_inode: None,
            exe_verified: false,
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
            ancestors: Arc::default(),
            ancestors_omitted: 0,
            verified: Verified::NOTHING,
            start_ns: 0,
            is_slim: false,
            id: RecordId::default(),
        }
    }

    /// The record without what is long and can be read again while the process runs: arguments,
    /// directory and ancestors.
    #[must_use]
    pub fn slim(&self) -> Self {
        Self {
            cmdline: None,
            cwd: None,
            ancestors: Arc::default(),
            ancestors_omitted: 0,
            is_slim: true,
            ..self.clone()
        }
    }

    /// Whether `other` is the same process and runs the same program.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let key = |one: &Self| (one.pid, one.start_ns, one.exe_inode, one.exe_device);
        self.start_ns != 0 && key(self) == key(other) && self.exe == other.exe
    }

    /// This slim record with what `full` has, which [is the same](Self::is_same).
    pub(super) fn completed_by(&self, full: &Self) -> Self {
        Self {
            cmdline: full.cmdline.clone(),
            cwd: full.cwd.clone(),
            ancestors: Arc::clone(&full.ancestors),
            ancestors_omitted: full.ancestors_omitted,
            is_slim: false,
            ..self.clone()
        }
    }

    /// Takes the memory of equal texts from another record: many processes have the same.
    pub(super) fn share_texts(&mut self, other: &Self) {
        fn share(text: &mut Printable, other: &Printable) {
            if text == other {
                *text = other.clone();
            }
        }
        let verified = &mut self.verified;
        let pairs = [
            (&mut self.exe, &other.exe),
            (&mut self.script, &other.script),
            (&mut self.cwd, &other.cwd),
            (&mut self.user, &other.user),
            (&mut self.cgroup, &other.cgroup),
            (&mut self.unit, &other.unit),
            (&mut verified.cgroup, &other.verified.cgroup),
        ];
        for (text, other) in pairs {
            if let Some((text, other)) = text.as_mut().zip(other.as_ref()) {
                share(text, other);
            }
        }
        share(&mut self.comm, &other.comm);
        if let Some((text, other)) = verified.cgroup.as_mut().zip(self.cgroup.as_ref()) {
            share(text, other);
        }
        let words = self.cmdline.iter_mut().flatten();
        for (word, other) in words.zip(other.cmdline.iter().flatten()) {
            share(word, other);
        }
    }

    /// About how many bytes of memory the record takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let words = self.cmdline.iter().flatten();
        let ancestors = self.ancestors.iter();
        let optional = [
            &self.exe,
            &self.script,
            &self.cwd,
            &self.user,
            &self.cgroup,
            &self.unit,
            &self.verified.cgroup,
        ];
        let container = self.container.iter().map(|container| &container.id);
        let strings = optional
            .into_iter()
            .flatten()
            .chain([&self.comm])
            .chain(container)
            .chain(self.verified.unit.iter().map(|unit| &unit.name))
            .chain(self.verified.container.iter().map(|one| &one.id));
        let text: usize = strings
            .map(|text| text.len())
            .chain(words.map(|word| word.len() + size_of::<Printable>()))
            .chain(ancestors.map(|ancestor| {
                let exe = ancestor.exe.as_deref().map_or(0, str::len);
                ancestor.comm.len() + exe + size_of::<Ancestor>()
            }))
            .sum();
        size_of::<Self>() + text
    }
}

/// The JSON of a process: its record, and which values of it are certain.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    process: &'a Process,
    verified: Proofs<'a>,
    unverified: Vec<&'static str>,
}

#[derive(Serialize)]
struct Proofs<'a> {
    exe: Option<&'static str>,
    #[serde(flatten)]
    verified: &'a Verified,
}

impl<'a> Record<'a> {
    fn of(process: &'a Process) -> Self {
        let is_exe_certain = process.exe.is_some() && process.exe_verified;
        Self {
            process,
            verified: Proofs {
                exe: is_exe_certain.then_some("inode"),
                verified: &process.verified,
            },
            unverified: process.unverified(),
        }
    }
}

/// A special property of an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExeFlag {
    /// Unlinked after the process executed it.
    Deleted,
    /// Created by memfd_create(2), never in a directory.
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

/// A parent, grandparent and so on of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ancestor {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its name.
    pub comm: Printable,
    /// The executable's path.
    pub exe: Option<Printable>,
}

impl Ancestor {
    /// The bytes that it takes as JSON, at most.
    pub(super) fn json_bytes(&self) -> usize {
        const KEYS: usize = r#"{"pid":4294967295,"comm":"","exe":""},"#.len();
        let exe = self.exe.as_ref().map_or(0, Printable::json_bytes);
        KEYS + self.comm.json_bytes() + exe
    }
}

/// RFC 3339 in UTC. The resolution of /proc is a clock tick, usually 10 ms.
fn milliseconds<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&format_args!("{time:.3}")),
        None => serializer.serialize_none(),
    }
}
