//! All that one core or all cores can bind: what of it is told, and what that takes.

use std::{
    io::BufRead as _,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::Value;

use super::{Effort, Row, agent::Agent};

/// Unassigned, one for each thread.
const FIRST_PORT: u16 = 955;

/// How a loss is told, within the first bytes of its line.
const LOSS: &[u8] = b"\"event\":\"loss\"";
const HEAD: usize = 160;

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
        let (mut told, mut lost) = (0_u64, 0_u64);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            told += 1;
            // Only the beginning, so that the reader is not what the monitor waits for.
            let head = &line[..line.len().min(HEAD)];
            if head.windows(LOSS.len()).any(|bytes| bytes == LOSS) {
                let loss: Value = serde_json::from_slice(&line).unwrap_or_default();
                lost += loss["lost"].as_u64().unwrap_or(0);
            }
            line.clear();
        }
        (told, lost)
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
    let (told, lost) = reader
        .join()
        .map_err(|_| anyhow::anyhow!("reading ended early"))?;
    let events = binds * 2;
    let taken = events.saturating_sub(lost).max(1);
    Ok(Row::new(how)
        .with("events", events.to_string())
        .with("lines", told.to_string())
        .with("lost", lost.to_string())
        .with(
            "agent, us an event",
            format!("{:.2}", spent * 1e6 / taken as f64),
        ))
}
