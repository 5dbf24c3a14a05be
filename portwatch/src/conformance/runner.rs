//! Runs scenarios beside a monitor and compares its alerts with the expected ones.

#![forbid(unsafe_code)]

use std::{
    fs::{File, Permissions},
    io::{self, BufRead as _, BufReader, Write as _},
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

use super::{
    ALL, Line, Scenario, denied,
    observed::{Observed, by_socket, compare, list},
    script::SENTINEL,
};

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
            .args(["run", "--format", "json", "--no-aggregate", "--sessions"])
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
                Ok(Line::Sessions) => received.compares_sessions = true,
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
    /// Whether the ends of connections are compared too.
    compares_sessions: bool,
    alerts: Vec<Value>,
    sentinels: u32,
    slowest: Option<Duration>,
    deadline: Instant,
}

impl Received {
    fn new() -> Self {
        Self {
            namespaces: Vec::new(),
            compares_sessions: false,
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
        if alert["event"] == "session" && !self.compares_sessions {
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
