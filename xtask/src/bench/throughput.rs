//! Binds at the full rate of one core and of all cores: how many events are reported, and at which cost.

use std::{
    io::BufRead as _,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::Value;

use super::{Figure, Profile, Row, agent::Agent};

/// Unassigned, one for each thread.
const FIRST_PORT: u16 = 955;

pub(super) fn measure(profile: Profile) -> Result<Vec<Row>> {
    let cores = thread::available_parallelism()?.get().min(30);
    let mut rows = Vec::new();
    for (threads, arguments, how) in [
        (1, &["--no-aggregate"][..], "one core, --no-aggregate"),
        (cores, &["--no-aggregate"], "all cores, --no-aggregate"),
        (1, &[], "one core, aggregated"),
        (cores, &[], "all cores, aggregated"),
    ] {
        rows.push(one(profile, threads, arguments, how)?);
    }
    Ok(rows)
}

fn one(profile: Profile, threads: usize, arguments: &[&str], how: &str) -> Result<Row> {
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
    let end = Instant::now() + profile.seconds;
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
    // Events in the ring are still to be reported.
    thread::sleep(Duration::from_secs(2));
    let spent = agent.processor_time()? - before;
    agent.stop()?;
    let read = reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reading thread panicked"))?;
    let events = binds * 2;
    let unaccounted = events as i64 - (read.reported + read.aggregated + read.lost) as i64;
    let taken = events.saturating_sub(read.lost).max(1);
    Ok(Row::new(how)
        .with("events", Figure::count(events))
        .with("reported", Figure::count(read.reported))
        .with("aggregated", Figure::count(read.aggregated))
        .with("lost", Figure::count(read.lost))
        .with("unaccounted", Figure::Count(unaccounted))
        .with(
            "monitor, us per event",
            Figure::Number(spent * 1e6 / taken as f64, 2),
        ))
}

/// Events by the lines that were read.
#[derive(Default)]
struct Read {
    reported: u64,
    aggregated: u64,
    lost: u64,
}

/// The event's name is within these first bytes of a line. Most lines are not parsed further, so that the
/// reader is not the bottleneck.
const HEAD: usize = 160;

impl Read {
    fn line(&mut self, line: &[u8]) {
        let head = &line[..line.len().min(HEAD)];
        let has = |event: &[u8]| head.windows(event.len()).any(|bytes| bytes == event);
        if has(b"\"event\":\"loss\"") || has(b"\"event\":\"summary\"") {
            let value: Value = serde_json::from_slice(line).unwrap_or_default();
            self.lost += value["lost"].as_u64().unwrap_or(0);
            let counts = value["summary"]["counts"].as_object();
            let counts = counts.into_iter().flat_map(|counts| counts.values());
            self.aggregated += counts.filter_map(Value::as_u64).sum::<u64>();
        } else if !has(b"\"event\":\"health\"") {
            self.reported += 1;
        }
    }
}
