//! Events that were counted, in an alert.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, rc::Rc};

use jiff::Timestamp;
use serde::Serialize;

use super::{Alert, nanoseconds};
use crate::{
    aggregate::{Group, Summary},
    model::{EventKind, PortKey, Printable},
    tracker::TrackedSocket,
};

/// Bytes of an executable's path in a summary, in JSON: `process` has more of it.
const MAX_SUMMARY_EXE: usize = 512;

/// Bytes of the ports of one transport in a summary.
const MAX_RANGES: usize = 256;

/// A process in a summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SummaryProcess {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its name.
    pub comm: Printable,
    /// Path of the executable.
    pub exe: Option<Printable>,
    /// How many of the events it caused.
    pub events: u64,
}

/// Events that were counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SummaryInfo {
    /// When the first of them happened.
    #[serde(serialize_with = "nanoseconds")]
    pub since: Timestamp,
    /// How many, by event.
    pub counts: BTreeMap<&'static str, u64>,
    /// On which ports, by transport: `1-3,954-988`.
    pub ports: BTreeMap<&'static str, String>,
    /// On which ports the same program, or anyone on that port, has a socket open now.
    pub held: BTreeMap<&'static str, String>,
    /// The processes that caused most of them, the busiest first.
    pub processes: Vec<SummaryProcess>,
    /// Bytes that their sessions received; None without any.
    pub bytes_in: Option<u64>,
    /// Bytes that their sessions sent; None without any.
    pub bytes_out: Option<u64>,
}

impl Alert {
    /// The alert for events that were counted. `open`: the tracked sockets.
    #[must_use]
    pub fn of_summary<'a>(
        summary: Summary,
        open: impl Iterator<Item = &'a TrackedSocket>,
        host: Printable,
    ) -> Self {
        let held = open.filter(|socket| summary.group.has(socket));
        let mut held: Vec<PortKey> = held.map(|socket| socket.port_key).collect();
        held.sort_unstable();
        held.dedup();
        let only = match summary.ports.len() {
            1 => summary.ports.first().copied(),
            _ => None,
        };
        // Of several programs none stands for all.
        let process = match (&summary.group, &*summary.processes) {
            (Group::Program { .. }, [(busiest, _), ..]) | (_, [(busiest, _)]) => {
                Some(Rc::clone(busiest))
            }
            _ => None,
        };
        let processes = summary.processes.iter();
        let has_sessions =
            summary.bytes != (0, 0) || summary.counts.contains_key(EventKind::Session.name());
        Self {
            port: only.map(|port_key| port_key.port),
            transport: only.map(|port_key| port_key.transport),
            registry: summary.registry,
            process,
            summary: Some(SummaryInfo {
                since: summary.since,
                bytes_in: has_sessions.then_some(summary.bytes.0),
                bytes_out: has_sessions.then_some(summary.bytes.1),
                counts: summary.counts,
                ports: ranges(summary.ports),
                held: ranges(held),
                processes: processes
                    .map(|(process, events)| SummaryProcess {
                        pid: process.pid,
                        comm: process.comm.clone(),
                        exe: process
                            .exe
                            .clone()
                            .map(|exe| exe.shortened(MAX_SUMMARY_EXE)),
                        events: *events,
                    })
                    .collect(),
            }),
            ..Self::of_monitor(EventKind::Summary, summary.severity, host)
        }
    }
}

/// Ascending ports by transport, `1-3,954-988`; those for which there is no room are counted:
/// `1,3,...(+7 ports)`.
fn ranges(ports: impl IntoIterator<Item = PortKey>) -> BTreeMap<&'static str, String> {
    let mut runs: BTreeMap<&'static str, Vec<(u16, u16)>> = BTreeMap::new();
    for PortKey { transport, port } in ports {
        let runs = runs.entry(transport.name()).or_default();
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => runs.push((port, port)),
        }
    }
    let text = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let join = |runs: Vec<(u16, u16)>| {
        let mut joined = String::new();
        for (index, run) in runs.iter().enumerate() {
            let run = text(run);
            if joined.len() + run.len() + 1 > MAX_RANGES {
                let rest = runs.iter().skip(index);
                let ports: u32 = rest.map(|(first, last)| u32::from(last - first) + 1).sum();
                joined.push_str(&format!(",...(+{ports} ports)"));
                break;
            }
            if index > 0 {
                joined.push(',');
            }
            joined.push_str(&run);
        }
        joined
    };
    runs.into_iter()
        .map(|(transport, runs)| (transport, join(runs)))
        .collect()
}
