//! All that one core or all cores can bind: what of it is told, and what that takes.

use std::{
    io::BufRead as _,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::Value;

use super::{Effort, Figure, Row, agent::Agent};

/// Unassigned, one for each thread.
const FIRST_PORT: u16 = 955;

pub(super) fn measure(effort: Effort) -> Result<Vec<Row>> {
    let cores = thread::available_parallelism()?.get().min(30);
    let mut rows = Vec::new();
    for (threads, arguments, how) in [
        (1, &["--no-collapse"][..], "one core, --no-collapse"),
        (cores, &["--no-collapse"], "all cores, --no-collapse"),
        (1, &[], "one core, collapsed"),
        (cores, &[], "all cores, collapsed"),
    ] {
        rows.push(one(effort, threads, arguments, how)?);
    }
    Ok(rows)
}

fn one(effort: Effort, threads: usize, arguments: &[&str], how: &str) -> Result<Row> {
    let (agent, mut lines) = Agent::piped(arguments)?;
    let reader = thread::spawn(move || {
        let mut read = Read::default();
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            read.line(&line);
            line.clear();
        }
        read
    });
    let before = agent.processor_time()?;
    let end = Instant::now() + effort.seconds;
    let binders: Vec<_> = (FIRST_PORT..)
        .take(threads)
        .map(|port| {
            thread::spawn(move || {
                let mut count = 0_u64;
                while Instant::now() < end {
                    if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
                        count += 1;
                    }
                }
                count
            })
        })
        .collect();
    let binds: u64 = binders
        .into_iter()
        .filter_map(|binder| binder.join().ok())
        .sum();
    // What is in the ring is still to be told.
    thread::sleep(Duration::from_secs(2));
    let spent = agent.processor_time()? - before;
    agent.stop()?;
    let read = reader
        .join()
        .map_err(|_| anyhow::anyhow!("reading ended early"))?;
    let events = binds * 2;
    let missing = events as i64 - (read.told + read.summed + read.lost) as i64;
    let taken = events.saturating_sub(read.lost).max(1);
    Ok(Row::new(how)
        .with("events", Figure::count(events))
        .with("told", Figure::count(read.told))
        .with("summed up", Figure::count(read.summed))
        .with("lost", Figure::count(read.lost))
        .with("missing", Figure::Count(missing))
        .with(
            "agent, us an event",
            Figure::Number(spent * 1e6 / taken as f64, 2),
        ))
}

/// What the lines say of how many events.
#[derive(Default)]
struct Read {
    told: u64,
    summed: u64,
    lost: u64,
}

/// Where the event's name is at the latest: only that much is looked at of most lines, so that the
/// reader is not what the monitor waits for.
const HEAD: usize = 160;

impl Read {
    fn line(&mut self, line: &[u8]) {
        let head = &line[..line.len().min(HEAD)];
        let says = |event: &[u8]| head.windows(event.len()).any(|bytes| bytes == event);
        if says(b"\"event\":\"loss\"") || says(b"\"event\":\"summary\"") {
            let value: Value = serde_json::from_slice(line).unwrap_or_default();
            self.lost += value["lost"].as_u64().unwrap_or(0);
            let counts = value["summary"]["counts"].as_object();
            let counts = counts.into_iter().flat_map(|counts| counts.values());
            self.summed += counts.filter_map(Value::as_u64).sum::<u64>();
        } else if !says(b"\"event\":\"health\"") {
            self.told += 1;
        }
    }
}
