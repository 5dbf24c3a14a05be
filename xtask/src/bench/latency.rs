//! The delay from bind() to a readable alert.

use std::{
    io::BufRead as _,
    net::UdpSocket,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Figure, Profile, Row, agent::Agent, quantile, work::again};

/// UDP binds one after the other, on an otherwise idle host.
pub(super) fn measure(profile: Profile) -> Result<Vec<Row>> {
    let (agent, mut lines) = Agent::piped(&["--no-aggregate"])?;
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
    for _ in 0..profile.operations / 20 {
        let socket = again(|| UdpSocket::bind("127.0.0.1:976"))?;
        let bound = Instant::now();
        let read = times
            .recv_timeout(Duration::from_secs(10))
            .context("no alert within 10 s")?;
        delays.push(read.saturating_duration_since(bound).as_nanos() as f64 / 1e3);
        drop(socket);
        thread::sleep(Duration::from_millis(1));
    }
    agent.stop()?;
    let count = delays.len();
    let mut at = |share| Figure::Number(quantile(&mut delays, share), 0);
    Ok(vec![
        Row::new(format!("bind() to a readable alert, {count} binds"))
            .with("p50, us", at(0.5))
            .with("p99, us", at(0.99))
            .with("max, us", at(1.0)),
    ])
}
