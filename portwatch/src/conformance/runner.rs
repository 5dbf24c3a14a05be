//! Runs scenarios beside a monitor and compares its alerts with the expected ones.

#![forbid(unsafe_code)]

use std::{
    fmt,
    fs::{File, Permissions},
    io::{self, BufRead as _, BufReader, Write as _},
    net::IpAddr,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde_json::Value;

use super::{ALL, Expected, Line, Scenario, denied, script::SENTINEL};

/// How long a scenario may take before it counts as failed.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The result of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The monitor printed all expected alerts and no other.
    #[serde(rename = "ok")]
    Ok,
    /// The kernel or the host cannot run the scenario.
    #[serde(rename = "n/a")]
    Unavailable,
    /// The alerts differ from the expected ones, or the scenario itself failed.
    #[serde(rename = "failed")]
    Failed,
}

/// The result of a scenario and its reason.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The result.
    pub outcome: Outcome,
    /// Why the scenario cannot run, or what differs; empty if the outcome is [`Outcome::Ok`].
    pub detail: String,
    /// The program that the host lacks, if that is the reason.
    #[serde(skip)]
    pub missing_program: Option<String>,
    /// The longest time from an event in the kernel to its alert on the monitor's stdout.
    #[serde(skip)]
    pub slowest: Option<Duration>,
}

/// A running monitor whose alerts are compared.
pub struct Monitor {
    program: PathBuf,
    child: Child,
    alerts: Receiver<(Value, Duration)>,
}

impl Monitor {
    /// Starts `program run` and waits until it watches the host.
    ///
    /// # Errors
    ///
    /// Fails if the program does not start, or ends at once: then the error is its first line on
    /// stderr.
    pub fn start(program: PathBuf) -> io::Result<Self> {
        // It inherits the descriptor, and needs no directory that can be written to.
        let mut rules = File::from(memfd_create("rules", MemfdFlags::empty())?);
        rules.write_all(denied::rules().as_bytes())?;
        // Anybody could write it otherwise, and the monitor would not use it.
        rules.set_permissions(Permissions::from_mode(0o600))?;
        let config = format!("/proc/self/fd/{}", rules.as_raw_fd());
        let mut child = Command::new(&program)
            // Every event, frequent scans.
            .args(["run", "--format", "json", "--no-aggregate"])
            .args(["--config", &config, "--health-interval", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut start_line = String::new();
        if let Some(stderr) = child.stderr.take() {
            let mut stderr = BufReader::new(stderr);
            stderr.read_line(&mut start_line)?;
            // Later lines must not fill the pipe.
            thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        }
        if !start_line.contains("armed: ") {
            let _ = child.wait();
            return Err(io::Error::other(start_line.trim().to_owned()));
        }
        let (sender, alerts) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let Ok(alert) = serde_json::from_str::<Value>(&line) else {
                        continue;
                    };
                    let age = age(&alert);
                    if sender.send((alert, age)).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self {
            program,
            child,
            alerts,
        })
    }

    /// Runs all scenarios, one after the other, and passes each verdict to `report` at once.
    pub fn run_all(&self, mut report: impl FnMut(Verdict)) {
        for scenario in ALL {
            report(self.verdict(scenario));
        }
    }

    fn verdict(&self, scenario: &Scenario) -> Verdict {
        let mut verdict = Verdict {
            scenario: scenario.name,
            outcome: Outcome::Ok,
            detail: String::new(),
            missing_program: None,
            slowest: None,
        };
        match self.run(scenario) {
            Ok(slowest) => verdict.slowest = slowest,
            Err(mismatch) => {
                (verdict.outcome, verdict.detail) = match mismatch {
                    Mismatch::Unavailable(reason) => (Outcome::Unavailable, reason),
                    Mismatch::MissingProgram(program) => {
                        let reason = format!("this host has no {program}");
                        verdict.missing_program = Some(program);
                        (Outcome::Unavailable, reason)
                    }
                    Mismatch::Failed(error) => (Outcome::Failed, error),
                };
            }
        }
        verdict
    }

    fn run(&self, scenario: &Scenario) -> Result<Option<Duration>, Mismatch> {
        let failed = |error: io::Error| Mismatch::Failed(error.to_string());
        let mut child = Command::new(&self.program)
            .args(["run-scenario", scenario.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let outcome = self.receive_all(&mut child);
        // Lets the scenario exit.
        drop(child.stdin.take());
        if outcome.is_err() {
            let _ = child.kill();
        }
        child.wait().map_err(failed)?;
        outcome
    }

    fn receive_all(&self, child: &mut Child) -> Result<Option<Duration>, Mismatch> {
        let lines = lines_of(child);
        let mut received = Received::new();
        let mut expected = Vec::new();
        let mut ended_early = None;
        loop {
            match lines.recv_timeout(received.remaining()) {
                Ok(Line::Netns(inode)) => received.namespaces.push(inode),
                Ok(Line::Expect(alert)) => expected.push(alert),
                Ok(Line::Wait) => {
                    while received.alerts.len() < expected.len() {
                        received.receive(&self.alerts)?;
                    }
                    if let Some(stdin) = &mut child.stdin {
                        // If it has exited, the missing `Done` is the error.
                        let _ = stdin.write_all(b"\n");
                    }
                }
                Ok(Line::Unavailable(reason)) => ended_early = Some(Mismatch::Unavailable(reason)),
                Ok(Line::MissingProgram(program)) => {
                    ended_early = Some(Mismatch::MissingProgram(program));
                }
                Ok(Line::Failed(error)) => ended_early = Some(Mismatch::Failed(error)),
                Ok(Line::Done) => break,
                Err(error) => {
                    let problem = format!("the scenario's process sent no \"Done\": {error}");
                    return Err(Mismatch::Failed(problem));
                }
            }
        }
        // One before the scenario and one after it: no alert can follow.
        while received.sentinels < 2 {
            received.receive(&self.alerts)?;
        }
        if let Some(mismatch) = ended_early {
            return Err(mismatch);
        }
        compare(&expected, &received.alerts).map_err(Mismatch::Failed)?;
        Ok(received.slowest)
    }
}

/// The alerts of one scenario.
struct Received {
    namespaces: Vec<u64>,
    alerts: Vec<Value>,
    sentinels: u32,
    slowest: Option<Duration>,
    deadline: Instant,
}

impl Received {
    fn new() -> Self {
        Self {
            namespaces: Vec::new(),
            alerts: Vec::new(),
            sentinels: 0,
            slowest: None,
            deadline: Instant::now() + TIMEOUT,
        }
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits for the next alert; keeps it if its namespace is the scenario's or unknown.
    fn receive(&mut self, alerts: &Receiver<(Value, Duration)>) -> Result<(), Mismatch> {
        let (alert, age) = alerts.recv_timeout(self.remaining()).map_err(|error| {
            let observed: Vec<Observed> = self.alerts.iter().map(Observed::of_alert).collect();
            let observed = list(&by_socket(&observed));
            Mismatch::Failed(format!("no more alerts after [{observed}]: {error}"))
        })?;
        // Whether a scan sees one is a matter of time.
        if alert["event"] == "handover" {
            return Ok(());
        }
        let netns = alert["socket"]["netns"].as_u64();
        if netns.is_some_and(|netns| !self.namespaces.contains(&netns)) {
            return Ok(());
        }
        if alert["port"] == SENTINEL && alert["transport"] == "udp" {
            self.sentinels += u32::from(alert["event"] == "close");
            return Ok(());
        }
        self.slowest = self.slowest.max(Some(age));
        self.alerts.push(alert);
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why a scenario is not [`Outcome::Ok`].
enum Mismatch {
    Unavailable(String),
    MissingProgram(String),
    Failed(String),
}

fn lines_of(child: &mut Child) -> Receiver<Line> {
    let (sender, lines) = channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str(&line) else {
                    continue;
                };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    lines
}

/// The time since an alert's event.
fn age(alert: &Value) -> Duration {
    let time = alert["time"]
        .as_str()
        .and_then(|time| time.parse::<Timestamp>().ok());
    time.and_then(|time| Duration::try_from(Timestamp::now().duration_since(time)).ok())
        .unwrap_or_default()
}

/// Compares the events of each socket; the order among sockets is not defined.
fn compare(expected: &[Expected], alerts: &[Value]) -> Result<(), String> {
    let observed: Vec<Observed> = alerts.iter().map(Observed::of_alert).collect();
    let wanted: Vec<Observed> = expected.iter().map(Observed::of_expected).collect();
    let (observed, wanted) = (by_socket(&observed), by_socket(&wanted));
    if observed == wanted {
        return Ok(());
    }
    Err(format!(
        "expected [{}], got [{}]",
        list(&wanted),
        list(&observed)
    ))
}

fn list(sockets: &[Vec<Observed>]) -> String {
    let sockets: Vec<String> = sockets
        .iter()
        .map(|events| {
            let events: Vec<String> = events.iter().map(ToString::to_string).collect();
            events.join(", ")
        })
        .collect();
    sockets.join("; ")
}

/// The compared part of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    socket: Option<u64>,
    event: String,
    transport: String,
    local: String,
    peer: Option<String>,
    pid: Option<u64>,
    outcome: Option<String>,
}

impl Observed {
    fn of_alert(alert: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let at = |address: &Value, port: &Value| format!("{} {port}", text(address));
        let peer = &alert["peer"];
        Self {
            socket: alert["socket"]["cookie"].as_u64(),
            event: text(&alert["event"]),
            transport: text(&alert["transport"]),
            // A message of the monitor's has no place: what it says is of interest.
            local: match alert["detail"].as_str() {
                Some(detail) if alert["event"] == "health" => detail.to_owned(),
                _ => at(&alert["address"], &alert["port"]),
            },
            peer: (!peer.is_null()).then(|| at(&peer["address"], &peer["port"])),
            pid: alert["process"]["pid"].as_u64(),
            outcome: alert["outcome"].as_str().map(Into::into),
        }
    }

    fn of_expected(expected: &Expected) -> Self {
        let at = |address: Option<IpAddr>, port: u16| {
            let address = address.map_or_else(|| "?".into(), |address| address.to_string());
            format!("{address} {port}")
        };
        Self {
            socket: expected.socket.map(u64::from),
            event: expected.event.name().into(),
            transport: expected.transport.name().into(),
            local: at(expected.address, expected.port),
            peer: expected.peer.map(|peer| at(Some(peer.ip()), peer.port())),
            pid: expected.pid.map(u64::from),
            outcome: expected.outcome.map(|outcome| outcome.name().into()),
        }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.event, self.transport, self.local)?;
        if let Some(peer) = &self.peer {
            write!(f, " peer {peer}")?;
        }
        if let Some(outcome) = &self.outcome {
            write!(f, " {outcome}")?;
        }
        match self.pid {
            Some(pid) => write!(f, " pid {pid}"),
            None => f.write_str(" without a process"),
        }
    }
}

/// The events of each socket in their order; the sockets in the order of their first event.
fn by_socket(events: &[Observed]) -> Vec<Vec<Observed>> {
    let mut sockets: Vec<(Option<u64>, Vec<Observed>)> = Vec::new();
    for event in events {
        // Cookies and the scenario's numbers differ; only which events share one is compared.
        let anonymous = Observed {
            socket: None,
            ..event.clone()
        };
        match sockets
            .iter_mut()
            .find(|(socket, _)| *socket == event.socket)
        {
            Some((_, events)) => events.push(anonymous),
            None => sockets.push((event.socket, vec![anonymous])),
        }
    }
    sockets.into_iter().map(|(_, events)| events).collect()
}
