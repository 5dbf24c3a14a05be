//! The agent's parts one by one, on inputs as they come: what the benches measure and callgrind counts.

use std::{hint::black_box, rc::Rc, time::Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use crate::{
    aggregate::Aggregator,
    alert::Alert,
    model::{Event, EventKind, Printable, SocketKey, Task, Transport},
    output::FormatName,
    policy::Policy,
    registry::Registry,
    sensor::Records,
    tracker::{ThisHost, Tracker},
};

/// A part's name, and what it does once.
pub type Part = (&'static str, Box<dyn FnMut()>);

/// Every part.
///
/// # Errors
///
/// The built-in registry's, and those of reading this process.
pub fn all() -> Result<Vec<Part>> {
    let alert = alert()?;
    let mut parts = vec![
        registry("registry: an unassigned port", 976)?,
        registry("registry: an assigned port", 80)?,
        occupancy()?,
        collapse(&alert),
        format("a line of text", FormatName::Text, &alert),
        format("a line of JSON", FormatName::Json, &alert),
    ];
    parts.extend(decode());
    Ok(parts)
}

fn decode() -> [Part; 2] {
    let mut records = Records::default();
    let mut others = Records::default();
    [
        (
            "decode: a report",
            Box::new(move || drop(black_box(records.report()))),
        ),
        (
            "decode: an image",
            Box::new(move || drop(black_box(others.exec_info()))),
        ),
    ]
}

fn registry(name: &'static str, port: u16) -> Result<Part> {
    let registry = Registry::embedded()?;
    let look_up = move || {
        black_box(registry.verdict(black_box(port), Transport::Tcp));
    };
    Ok((name, Box::new(look_up)))
}

/// A bind of a UDP socket by this process, and its close.
fn occupancy() -> Result<Part> {
    let mut tracker = tracker()?;
    let mut alerts = Vec::new();
    let mut cookie = 0;
    let task = task()?;
    let bind_and_close = move || {
        cookie += 1;
        for kind in [EventKind::Bind, EventKind::Close] {
            tracker.observe(event(kind, cookie, &task), &mut alerts);
        }
        black_box(&alerts);
        alerts.clear();
    };
    Ok(("occupancy: a bind and its close", Box::new(bind_and_close)))
}

fn collapse(alert: &Alert) -> Part {
    let mut collapse = Aggregator::new(Settings::default(), Printable::from("host"));
    let mut told = Vec::new();
    let now = Instant::now();
    let alert = alert.clone();
    let pass = move || {
        collapse.pass(alert.clone(), now, &mut told);
        black_box(&told);
        told.clear();
    };
    ("collapse: one of a burst", Box::new(pass))
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

fn tracker() -> Result<Tracker<ThisHost>> {
    let host = Printable::from("host");
    let policy = Rc::new(Policy::default());
    let registry = Registry::embedded()?;
    Ok(Tracker::new(ThisHost::default(), registry, host, policy))
}

fn alert() -> Result<Alert> {
    let mut alerts = Vec::new();
    tracker()?.observe(event(EventKind::Bind, 1, &task()?), &mut alerts);
    alerts.pop().context("a bind on 976 is no alert")
}

/// This process, as the kernel names it at a bind.
fn task() -> Result<Task> {
    let pid = std::process::id();
    let me = ThisHost::default().look_up(pid).context("no /proc/self")?;
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

/// What the sensor says of a socket on 976/udp.
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
    }
}
