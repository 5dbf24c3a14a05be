//! From bind() to a line that can be read; and who polls instead.

use std::{
    io::BufRead as _,
    net::UdpSocket,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Effort, Row, agent::Agent, quantile};

/// UDP binds one after the other; the host does nothing else.
pub(super) fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (agent, mut lines) = Agent::piped(&["--no-collapse"])?;
    let (sender, times) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            let now = Instant::now();
            let is_ours = line.contains("\"event\":\"bind\"") && line.contains("\"port\":976");
            if is_ours && sender.send(now).is_err() {
                break;
            }
            line.clear();
        }
    });
    let mut delays = Vec::new();
    for _ in 0..effort.operations / 20 {
        let socket = UdpSocket::bind("127.0.0.1:976")?;
        let bound = Instant::now();
        let read = times
            .recv_timeout(Duration::from_secs(10))
            .context("no alert came")?;
        delays.push(read.saturating_duration_since(bound).as_nanos() as f64 / 1e3);
        drop(socket);
        thread::sleep(Duration::from_millis(1));
    }
    agent.stop()?;
    let count = delays.len();
    let mut at = |share| format!("{:.0}", quantile(&mut delays, share));
    Ok(vec![
        Row::new(format!("bind() to the line on the pipe, {count} binds"))
            .with("p50, us", at(0.5))
            .with("p99, us", at(0.99))
            .with("max, us", at(1.0)),
    ])
}

/// Binds of 50 ms, told by the monitor and found by `ss -lnup` once a second.
pub(super) fn polling(effort: Effort) -> Result<Vec<Row>> {
    let (agent, mut lines) = Agent::piped(&["--no-collapse"])?;
    let told = thread::spawn(move || {
        let mut count = 0;
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            count += u32::from(line.contains("\"event\":\"bind\""));
            line.clear();
        }
        count
    });
    let end = Instant::now() + effort.seconds;
    let polling = thread::spawn(move || {
        let (mut found, mut polls, mut took) = (0, 0, Duration::ZERO);
        while Instant::now() < end {
            let began = Instant::now();
            let output = Command::new("ss")
                .args(["-Hlnup", "sport", "=", ":976"])
                .output();
            took += began.elapsed();
            polls += 1;
            found += u32::from(output.is_ok_and(|output| !output.stdout.is_empty()));
            thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
        }
        (found, polls, took)
    });
    let before = agent.processor_time()?;
    let mut made = 0;
    while Instant::now() < end {
        let socket = UdpSocket::bind("127.0.0.1:976")?;
        thread::sleep(Duration::from_millis(50));
        drop(socket);
        made += 1;
        thread::sleep(Duration::from_millis(200));
    }
    let (found, polls, took) = polling
        .join()
        .map_err(|_| anyhow::anyhow!("polling ended early"))?;
    let spent = agent.processor_time()? - before;
    agent.stop()?;
    let told = told
        .join()
        .map_err(|_| anyhow::anyhow!("reading ended early"))?;
    let share = |time: f64| format!("{:.2} %", time / effort.seconds.as_secs_f64() * 100.0);
    Ok(vec![
        Row::new("portwatch")
            .with("binds made", made.to_string())
            .with("told", told.to_string())
            .with("of the time", share(spent)),
        Row::new(format!("ss, {polls} times"))
            .with("binds made", made.to_string())
            .with("told", found.to_string())
            .with("of the time", share(took.as_secs_f64())),
    ])
}
