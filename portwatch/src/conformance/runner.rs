//! Runs paths against a monitor, and compares what it printed with what they expect.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Write as _},
    net::IpAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{ALL, Expected, Line, Path, script::SENTINEL};

/// How long a path may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// Every alert that must come came, and no other.
    #[serde(rename = "ok")]
    Ok,
    /// The kernel or the host does not have it.
    #[serde(rename = "n/a")]
    Unavailable,
    /// An alert is missing, wrong or too much, or the path went wrong.
    #[serde(rename = "failed")]
    Failed,
}

/// What became of a path, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The path's name.
    pub path: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it is not there or what is wrong; empty when all is well.
    pub detail: String,
    /// The program that the host lacks, when that is why.
    #[serde(skip)]
    pub missing_program: Option<String>,
    /// From the kernel's report to the line on the monitor's stdout: the slowest alert.
    #[serde(skip)]
    pub slowest: Option<Duration>,
}

/// A monitor whose alerts are compared.
pub struct Monitor {
    program: PathBuf,
    child: Child,
    alerts: Receiver<(Value, Duration)>,
    /// What it said when it was armed, or why it was not.
    pub said: String,
}

impl Monitor {
    /// Starts `program run`, and waits until it is armed.
    ///
    /// # Errors
    ///
    /// When it does not start or ends at once; the message is its own.
    pub fn start(program: PathBuf) -> io::Result<Self> {
        let mut child = Command::new(&program)
            // All that happens, and nobody's rules; snapshots soon.
            .args(["run", "--format", "json", "--no-aggregate"])
            .args(["--config", "/dev/null", "--health-interval", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            let mut stderr = BufReader::new(stderr);
            stderr.read_line(&mut said)?;
            // What it says later must not fill the pipe.
            thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        }
        if !said.contains("armed: ") {
            let _ = child.wait();
            return Err(io::Error::other(said.trim().to_owned()));
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
            said: said.trim().to_owned(),
        })
    }

    /// Goes every path, and tells each verdict as it is known.
    pub fn run_all(&self, mut tell: impl FnMut(Verdict)) {
        for path in ALL {
            tell(self.run(path));
        }
    }

    fn run(&self, path: &Path) -> Verdict {
        let mut verdict = Verdict {
            path: path.name,
            outcome: Outcome::Ok,
            detail: String::new(),
            missing_program: None,
            slowest: None,
        };
        match self.go(path) {
            Ok(slowest) => verdict.slowest = slowest,
            Err(mismatch) => {
                (verdict.outcome, verdict.detail) = match mismatch {
                    Mismatch::Unavailable(why) => (Outcome::Unavailable, why),
                    Mismatch::Missing(program) => {
                        let why = format!("this host has no {program}");
                        verdict.missing_program = Some(program);
                        (Outcome::Unavailable, why)
                    }
                    Mismatch::Failed(how) => (Outcome::Failed, how),
                };
            }
        }
        verdict
    }

    fn go(&self, path: &Path) -> Result<Option<Duration>, Mismatch> {
        let failed = |error: io::Error| Mismatch::Failed(error.to_string());
        let mut driver = Command::new(&self.program)
            .args(["run-scenario", path.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let outcome = self.listen_to(&mut driver);
        // Ends its wait, or what it hangs in.
        drop(driver.stdin.take());
        if outcome.is_err() {
            let _ = driver.kill();
        }
        driver.wait().map_err(failed)?;
        outcome
    }

    fn listen_to(&self, driver: &mut Child) -> Result<Option<Duration>, Mismatch> {
        let lines = lines_of(driver);
        let mut heard = Heard::new();
        let mut expected = Vec::new();
        let mut ended_early = None;
        loop {
            match lines.recv_timeout(heard.left()) {
                Ok(Line::Netns(inode)) => heard.namespaces.push(inode),
                Ok(Line::Expect(alert)) => expected.push(alert),
                Ok(Line::Wait) => {
                    while heard.alerts.len() < expected.len() {
                        heard.hear(&self.alerts)?;
                    }
                    if let Some(stdin) = &mut driver.stdin {
                        // When it has gone, its missing `Done` tells.
                        let _ = stdin.write_all(b"\n");
                    }
                }
                Ok(Line::Unavailable(why)) => ended_early = Some(Mismatch::Unavailable(why)),
                Ok(Line::Missing(program)) => ended_early = Some(Mismatch::Missing(program)),
                Ok(Line::Failed(how)) => ended_early = Some(Mismatch::Failed(how)),
                Ok(Line::Done) => break,
                Err(error) => return Err(Mismatch::Failed(format!("the path ended: {error}"))),
            }
        }
        // One before the path and one behind it: then whatever was to come has come.
        while heard.sentinels < 2 {
            heard.hear(&self.alerts)?;
        }
        if let Some(mismatch) = ended_early {
            return Err(mismatch);
        }
        compare(&expected, &heard.alerts).map_err(Mismatch::Failed)?;
        Ok(heard.slowest)
    }
}

/// What the monitor has told of a path.
struct Heard {
    namespaces: Vec<u64>,
    alerts: Vec<Value>,
    sentinels: u32,
    slowest: Option<Duration>,
    deadline: Instant,
}

impl Heard {
    fn new() -> Self {
        Self {
            namespaces: Vec::new(),
            alerts: Vec::new(),
            sentinels: 0,
            slowest: None,
            deadline: Instant::now() + PATIENCE,
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Takes the next alert, when it is about one of these namespaces or about an unknown one.
    fn hear(&mut self, alerts: &Receiver<(Value, Duration)>) -> Result<(), Mismatch> {
        let (alert, age) = alerts.recv_timeout(self.left()).map_err(|error| {
            let told = list(&by_socket(
                &self.alerts.iter().map(Told::of_alert).collect::<Vec<_>>(),
            ));
            Mismatch::Failed(format!("after [{told}] the monitor told no more: {error}"))
        })?;
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

enum Mismatch {
    Unavailable(String),
    Missing(String),
    Failed(String),
}

fn lines_of(driver: &mut Child) -> Receiver<Line> {
    let (sender, lines) = channel();
    if let Some(stdout) = driver.stdout.take() {
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

/// How long ago an alert's event was.
fn age(alert: &Value) -> Duration {
    let time = alert["time"]
        .as_str()
        .and_then(|time| time.parse::<Timestamp>().ok());
    time.and_then(|time| Duration::try_from(Timestamp::now().duration_since(time)).ok())
        .unwrap_or_default()
}

/// Compares socket by socket: the order among sockets is the kernel's affair.
fn compare(expected: &[Expected], alerts: &[Value]) -> Result<(), String> {
    let told: Vec<Told> = alerts.iter().map(Told::of_alert).collect();
    let wanted: Vec<Told> = expected.iter().map(Told::of_expected).collect();
    let (told, wanted) = (by_socket(&told), by_socket(&wanted));
    if told == wanted {
        return Ok(());
    }
    Err(format!(
        "expected [{}], got [{}]",
        list(&wanted),
        list(&told)
    ))
}

fn list(sockets: &[Vec<Told>]) -> String {
    let sockets: Vec<String> = sockets
        .iter()
        .map(|events| {
            let events: Vec<String> = events.iter().map(ToString::to_string).collect();
            events.join(", ")
        })
        .collect();
    sockets.join("; ")
}

/// What is compared of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    socket: Option<u64>,
    event: String,
    transport: String,
    local: String,
    peer: Option<String>,
    pid: Option<u64>,
}

impl Told {
    fn of_alert(alert: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let at = |address: &Value, port: &Value| format!("{} {port}", text(address));
        let peer = &alert["peer"];
        Self {
            socket: alert["socket"]["cookie"].as_u64(),
            event: text(&alert["event"]),
            transport: text(&alert["transport"]),
            local: at(&alert["address"], &alert["port"]),
            peer: (!peer.is_null()).then(|| at(&peer["address"], &peer["port"])),
            pid: alert["process"]["pid"].as_u64(),
        }
    }

    fn of_expected(expected: &Expected) -> Self {
        let at = |address: Option<IpAddr>, port: u16| {
            let address = address.map_or_else(|| "?".into(), |address| address.to_string());
            format!("{address} {port}")
        };
        Self {
            socket: Some(expected.socket.into()),
            event: expected.event.name().into(),
            transport: expected.transport.name().into(),
            local: at(expected.address, expected.port),
            peer: expected.peer.map(|peer| at(Some(peer.ip()), peer.port())),
            pid: expected.pid.map(u64::from),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.event, self.transport, self.local)?;
        if let Some(peer) = &self.peer {
            write!(f, " peer {peer}")?;
        }
        match self.pid {
            Some(pid) => write!(f, " pid {pid}"),
            None => f.write_str(" no pid"),
        }
    }
}

/// The events of each socket in their order; the sockets in the order of their first event.
fn by_socket(events: &[Told]) -> Vec<Vec<Told>> {
    let mut sockets: Vec<(Option<u64>, Vec<Told>)> = Vec::new();
    for event in events {
        // What the cookie is called differs; that it is the same does not.
        let anonymous = Told {
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
