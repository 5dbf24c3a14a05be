//! What was counted instead of being reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Instant,
};

use jiff::Timestamp;

use super::Group;
use crate::{
    decide::Decided,
    model::{EventKind, PortKey, Severity},
    process::Process,
    registry::RegistryInfo,
};

/// Processes that a summary counts for; past that the least busy is replaced.
const PROCESSES: usize = 64;

/// Processes that a summary names.
const NAMED: usize = 3;

/// What was counted in one group, since its last summary.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The group.
    pub group: Group,
    /// When the first of it happened.
    pub since: Timestamp,
    /// The highest severity in it.
    pub severity: Severity,
    /// How many events, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// On which ports.
    pub ports: BTreeSet<PortKey>,
    /// The registry's entry, for a single port.
    pub registry: Option<Rc<RegistryInfo>>,
    /// Bytes that its sessions received and sent.
    pub bytes: (u64, u64),
    /// The processes that caused most of it, each with its number of events, the busiest first.
    pub processes: Vec<(Rc<Process>, u64)>,
}

/// A summary in the making.
#[derive(Debug)]
pub(super) struct Sum {
    pub(super) began: Instant,
    summary: Summary,
    busy: Vec<Busy>,
}

/// A process and its events, by the space-saving algorithm of Metwally, Agrawal and El Abbadi (2005):
/// whoever caused more than one in [`PROCESSES`] is among them, however many others there are.
#[derive(Debug)]
struct Busy {
    process: Rc<Process>,
    /// At most so many events.
    most: u64,
    /// How many of these can be those of the process that it replaced.
    surplus: u64,
}

impl Sum {
    pub(super) fn new(group: Group, decided: &Decided, now: Instant) -> Self {
        Self {
            began: now,
            summary: Summary {
                group,
                since: decided.event.time,
                severity: decided.severity,
                counts: BTreeMap::new(),
                ports: BTreeSet::new(),
                registry: decided.registry.clone(),
                bytes: (0, 0),
                processes: Vec::new(),
            },
            busy: Vec::new(),
        }
    }

    fn add_bytes(&mut self, received: u64, sent: u64) {
        let (bytes_in, bytes_out) = &mut self.summary.bytes;
        *bytes_in = bytes_in.saturating_add(received);
        *bytes_out = bytes_out.saturating_add(sent);
    }

    /// Counts `times` events of the kind of `decided`.
    pub(super) fn add(&mut self, decided: &Decided, times: u64) {
        if let Some(session) = &decided.event.session {
            self.add_bytes(session.bytes_in, session.bytes_out);
        }
        // The close that would have had them is counted.
        if let Some(sessions) = &decided.sessions {
            self.add_bytes(sessions.bytes_in, sessions.bytes_out);
            self.add_kind(decided, EventKind::Session.name(), sessions.ended);
        }
        self.add_kind(decided, decided.event.kind.name(), times);
    }

    /// Notes that it holds events of that severity.
    pub(super) fn raise(&mut self, severity: Severity) {
        self.summary.severity = self.summary.severity.max(severity);
    }

    /// Counts `times` events of another kind on the socket of `decided`.
    pub(super) fn add_kind(&mut self, decided: &Decided, kind: &'static str, times: u64) {
        self.raise(decided.severity);
        let summary = &mut self.summary;
        if times > 0 {
            *summary.counts.entry(kind).or_default() += times;
        }
        summary.ports.insert(decided.event.port_key);
        let Some(process) = &decided.event.process else {
            return;
        };
        let is_it = |one: &&mut Busy| {
            (one.process.pid, one.process.start_ns) == (process.pid, process.start_ns)
        };
        if let Some(busy) = self.busy.iter_mut().find(is_it) {
            busy.most += times;
            return;
        }
        let process = Rc::clone(process);
        if self.busy.len() < PROCESSES {
            let (most, surplus) = (times, 0);
            self.busy.push(Busy {
                process,
                most,
                surplus,
            });
        } else if let Some(least) = self.busy.iter_mut().min_by_key(|busy| busy.most) {
            let surplus = least.most;
            let most = surplus + times;
            *least = Busy {
                process,
                most,
                surplus,
            };
        }
    }

    pub(super) fn finish(mut self) -> Summary {
        self.busy
            .sort_by_key(|busy| std::cmp::Reverse(busy.most - busy.surplus));
        let named = self.busy.into_iter().take(NAMED);
        self.summary.processes = named
            .map(|busy| (busy.process, busy.most - busy.surplus))
            .collect();
        if self.summary.ports.len() != 1 {
            self.summary.registry = None;
        }
        self.summary
    }
}
