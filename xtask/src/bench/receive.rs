//! The cost of datagrams beside a socket on a watched port, and how soon they are seen.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    path::PathBuf,
    process::ChildStdout,
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::{Figure, Profile, Row, agent::Agent, median, quantile, spread, work};

/// The port that is watched.
const WATCHED: &str = "127.0.0.1:976";

/// Longer than the program stays attached after a close.
const PAUSE: Duration = Duration::from_millis(2500);

/// Datagrams over the loopback device, each sent and received: with nothing attached and with
/// portwatch, in turns.
pub(super) fn measure(profile: Profile) -> Result<Vec<Row>> {
    let home = Cgroups::new()?;
    // A socket stays in the cgroup that it was created in.
    home.enter("elsewhere")?;
    let elsewhere = Pair::new("127.0.0.1:0")?;
    home.enter("watched")?;
    let beside = Pair::new("127.0.0.1:0")?;
    let mut costs = [
        "to a socket in another cgroup",
        "to another socket in the cgroup of the watched one",
        "to the watched socket",
    ]
    .map(|what| (what, Cost::default()));
    for _ in 0..profile.rounds * 2 {
        let without = time_all(profile, [&elsewhere, &beside, &Pair::new(WATCHED)?])?;
        let (agent, lines) = home.agent()?;
        let watched = Pair::new(WATCHED)?;
        watched.send_until_seen(&lines)?;
        let with = time_all(profile, [&elsewhere, &beside, &watched])?;
        drop(watched);
        agent.stop()?;
        for ((_, cost), (without, with)) in costs.iter_mut().zip(without.into_iter().zip(with)) {
            cost.without.push(without);
            cost.differences.push(with - without);
            cost.ratios.push(with / without);
        }
    }
    let mut rows: Vec<Row> = costs.map(|(what, mut cost)| cost.row(what)).into();
    rows.push(delay(&home, profile.rounds * 4)?);
    Ok(rows)
}

/// The time from a bind to the first datagram that is counted.
fn delay(home: &Cgroups, binds: usize) -> Result<Row> {
    let (agent, lines) = home.agent()?;
    let mut delays = Vec::new();
    for _ in 0..binds {
        thread::sleep(PAUSE);
        let pair = work::again(|| Pair::new(WATCHED))?;
        let bound = Instant::now();
        let sent = pair.send_until_seen(&lines)?;
        drop(pair);
        let close = next(&lines, "close")?;
        let counted = close["received"]["datagrams"].as_u64().unwrap_or(0) as usize;
        let first = sent.get(sent.len().saturating_sub(counted));
        let first = first.context("more datagrams were counted than sent")?;
        delays.push(first.saturating_duration_since(bound).as_nanos() as f64 / 1e6);
    }
    agent.stop()?;
    let mut at = |share| Figure::Number(quantile(&mut delays, share), 2);
    Ok(
        Row::new(format!("bind to the first counted datagram, {binds} binds"))
            .with("p50, ms", at(0.5))
            .with("p99, ms", at(0.99))
            .with("max, ms", at(1.0)),
    )
}

fn time_all(profile: Profile, pairs: [&Pair; 3]) -> Result<[f64; 3]> {
    let mut times = [0.0; 3];
    for (time, pair) in times.iter_mut().zip(pairs) {
        work::time(profile.operations / 8, || pair.pass_on())?;
        let before = processor_time()?;
        work::time(profile.operations, || pair.pass_on())?;
        let spent = processor_time()?.saturating_sub(before);
        *time = spent.as_nanos() as f64 / f64::from(profile.operations);
    }
    Ok(times)
}

/// This thread's so far: over the loopback device it does the receiver's work as well.
fn processor_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

#[derive(Default)]
struct Cost {
    without: Vec<f64>,
    differences: Vec<f64>,
    ratios: Vec<f64>,
}

impl Cost {
    fn row(&mut self, what: &str) -> Row {
        Row::new(format!("datagram {what}"))
            .with(
                "processor time without portwatch, ns",
                median(&mut self.without, 0),
            )
            .with(
                "more with portwatch, ns (middle half)",
                spread(&mut self.differences, 0),
            )
            .with("ratio (middle half)", spread(&mut self.ratios, 3))
    }
}

/// A socket and one that sends to it.
struct Pair {
    receiver: UdpSocket,
    sender: UdpSocket,
}

impl Pair {
    fn new(at: &str) -> std::io::Result<Self> {
        let receiver = work::again(|| UdpSocket::bind(at))?;
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        sender.connect(receiver.local_addr()?)?;
        Ok(Self { receiver, sender })
    }

    fn pass_on(&self) -> std::io::Result<()> {
        self.sender.send(b"datagram")?;
        self.receiver.recv(&mut [0; 16])?;
        Ok(())
    }

    /// Sends until the monitor reports a datagram; when each was sent.
    fn send_until_seen(&self, lines: &Receiver<String>) -> Result<Vec<Instant>> {
        let mut sent = Vec::new();
        loop {
            sent.push(Instant::now());
            self.pass_on()?;
            match lines.try_recv() {
                Ok(line) if is(&line, "receive") => return Ok(sent),
                Ok(_) | Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => anyhow::bail!("the monitor has ended"),
            }
            thread::sleep(Duration::from_micros(20));
        }
    }
}

fn read(mut lines: BufReader<ChildStdout>) -> Receiver<String> {
    let (sender, received) = channel();
    thread::spawn(move || {
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            if sender.send(std::mem::take(&mut line)).is_err() {
                break;
            }
        }
    });
    received
}

fn is(line: &str, event: &str) -> bool {
    line.contains(&format!("\"event\":\"{event}\"")) && line.contains("\"port\":976")
}

fn next(lines: &Receiver<String>, event: &str) -> Result<Value> {
    loop {
        let line = lines
            .recv_timeout(Duration::from_secs(10))
            .context("no alert within 10 s")?;
        if is(&line, event) {
            return Ok(serde_json::from_str(&line)?);
        }
    }
}

/// Cgroups for this process to create sockets in; it goes back to its own at the end.
struct Cgroups {
    root: PathBuf,
    own: PathBuf,
}

const CGROUPS: [&str; 2] = ["elsewhere", "watched"];

impl Cgroups {
    fn new() -> Result<Self> {
        let root = crate::cgroup::root()?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let own = root.join(own.context("not in the cgroup v2 hierarchy")?);
        let cgroups = Self { root, own };
        for name in CGROUPS {
            fs::create_dir(cgroups.path(name)).context("creating a cgroup")?;
        }
        Ok(cgroups)
    }

    fn path(&self, name: &str) -> PathBuf {
        let id = std::process::id();
        self.root.join(format!("portwatch-bench-{id}-{name}"))
    }

    fn enter(&self, name: &str) -> Result<()> {
        let file = self.path(name).join("cgroup.procs");
        fs::write(file, "0").context("entering a cgroup")
    }
}

impl Cgroups {
    /// A monitor of the watched cgroup alone, since others on this host can use the same port.
    fn agent(&self) -> Result<(Agent, Receiver<String>)> {
        let cgroup = self.path("watched");
        let cgroup = cgroup.to_str().context("not UTF-8")?;
        let (agent, lines) = Agent::piped(&["--no-aggregate", "--cgroup", cgroup])?;
        Ok((agent, read(lines)))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = fs::write(self.own.join("cgroup.procs"), "0");
        for name in CGROUPS {
            let _ = fs::remove_dir(self.path(name));
        }
    }
}
