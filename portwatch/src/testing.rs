//! The monitor's parts with typical inputs, for `benches/parts.rs`, which times them and counts their
//! instructions, and its readers of what comes from outside, for fuzzing. Compiled with feature `testing`
//! only.

#![forbid(unsafe_code)]

pub mod fuzz;

use std::{hint::black_box, time::Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use crate::{
    aggregate::{Aggregator, Settings},
    alert::Alert,
    decide::{Decided, Decider},
    model::{CloseKind, Event, EventKind, Printable, SocketKey, Task, Transport},
    output::FormatName,
    policy::Policy,
    process::Processes,
    registry::Registry,
    sensor::Records,
    tracker::{ThisHost, Tracker},
};

/// A part's name, and a closure that runs it once.
pub type Part = (&'static str, Box<dyn FnMut()>);

/// All parts.
///
/// # Errors
///
/// When the built-in registry cannot be parsed, or this process is not readable in /proc.
pub fn parts() -> Result<Vec<Part>> {
    let alert = Alert::of_event(decided()?, None, Printable::from("host"));
    let mut parts = vec![
        registry("registry: unassigned port", 976)?,
        registry("registry: assigned port", 80)?,
        bind_and_close()?,
        aggregation()?,
        format("output: text line", FormatName::Text, &alert),
        format("output: JSON line", FormatName::Json, &alert),
    ];
    parts.extend(decode());
    Ok(parts)
}

fn decode() -> [Part; 2] {
    let mut records = Records::default();
    let mut exec_infos = Records::default();
    [
        (
            "decode: socket event",
            Box::new(move || drop(black_box(records.report()))),
        ),
        (
            "decode: exec info",
            Box::new(move || drop(black_box(exec_infos.exec_info()))),
        ),
    ]
}

fn registry(name: &'static str, port: u16) -> Result<Part> {
    let registry = Registry::embedded()?;
    let look_up = move || {
        black_box(registry.entry(black_box(port), Transport::Tcp));
    };
    Ok((name, Box::new(look_up)))
}

/// This process binds a UDP socket and closes it.
fn bind_and_close() -> Result<Part> {
    let mut tracker = Tracker::new(ThisHost::default());
    let mut alerts = Vec::new();
    let mut cookie = 0;
    let task = task()?;
    let run = move || {
        cookie += 1;
        for kind in [EventKind::Bind, EventKind::Close] {
            tracker.observe(event(kind, cookie, &task), &mut alerts);
        }
        black_box(&alerts);
        alerts.clear();
    };
    Ok(("tracker: bind and close", Box::new(run)))
}

fn aggregation() -> Result<Part> {
    let mut aggregator = Aggregator::new(Settings::default());
    let mut outputs = Vec::new();
    let now = Instant::now();
    let decided = decided()?;
    let push = move || {
        aggregator.push(decided.clone(), now, &mut outputs);
        black_box(&outputs);
        outputs.clear();
    };
    Ok(("aggregation: one event of a burst", Box::new(push)))
}

fn format(name: &'static str, format: FormatName, alert: &Alert) -> Part {
    let format = format.format(false);
    let mut line = Vec::new();
    let alert = alert.clone();
    let write = move || {
        line.clear();
        format.write(black_box(&alert), &mut line);
        black_box(&line);
    };
    (name, Box::new(write))
}

/// A bind on 976/udp by this process.
fn decided() -> Result<Decided> {
    let mut tracked = Vec::new();
    Tracker::new(ThisHost::default()).observe(event(EventKind::Bind, 1, &task()?), &mut tracked);
    let tracked = tracked
        .pop()
        .context("the bind on port 976 is not tracked")?;
    Decider::new(Registry::embedded()?, Policy::default(), false)
        .decide(tracked)
        .context("the bind on port 976 raised no alert")
}

/// This process, as the BPF programs report it at a bind.
fn task() -> Result<Task> {
    let pid = std::process::id();
    let me = Processes::default().look_up(pid).context("no /proc/self")?;
    Ok(Task {
        pid,
        tid: pid,
        uid: me.uid,
        gid: me.gid,
        comm: me.comm.as_bytes().to_vec(),
        cgroup_id: None,
        start_ns: Some(me.start_ns),
        exec_info: None,
    })
}

/// An event of a socket on 976/udp.
fn event(kind: EventKind, cookie: u64, task: &Task) -> Event {
    Event {
        kind,
        time: Timestamp::UNIX_EPOCH,
        key: Some(SocketKey::Cookie(cookie)),
        netns_cookie: None,
        netns: Some(1),
        transport: Transport::Udp,
        address: Some([127, 0, 0, 1].into()),
        port: 976,
        peer: None,
        task: (kind == EventKind::Bind).then(|| task.clone()),
        is_kernel_socket: Some(false),
        binder: None,
        outcome: None,
        accepted: None,
        close: CloseKind::Released,
        is_from_host: false,
        direction: None,
        session: None,
        interface: None,
        device: None,
        v6only: None,
    }
}
