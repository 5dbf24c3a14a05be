//! `portwatch` as a child process.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::{LazyLock, mpsc},
    thread,
    time::Duration,
};

use jsonschema::Validator;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// How long a step may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The `portwatch` executable.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_portwatch"))
}

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let schema = include_str!("../../../../docs/alert.schema.json");
    jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap()
});

fn json(line: &str) -> Value {
    // No test makes the monitor call what its sandbox denies, but those that read raw lines.
    assert!(!line.contains("the sandbox denied"), "{line}");
    assert!(!line.contains("the helper process has ended"), "{line}");
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Checks an alert against docs/alert.schema.json.
fn valid(alert: Value) -> Value {
    let errors: Vec<String> = SCHEMA
        .iter_errors(&alert)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?} in {alert}");
    alert
}

/// A running monitor; killed when dropped.
pub struct Monitor {
    child: Child,
    /// The line that it logged once it watched the host.
    pub start_line: String,
    lines: mpsc::Receiver<String>,
    stderr: Option<BufReader<ChildStderr>>,
}

/// The result of a process that has ended.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Monitor {
    /// Starts `portwatch run --format json` with these arguments, without rules and without
    /// aggregation, and waits until it watches the host.
    pub fn start(arguments: &[&str]) -> Self {
        let plain = ["--no-aggregate", "--config", "/dev/null"];
        Self::start_default(&[&plain, arguments].concat())
    }

    /// As [`start`](Self::start), but with the default configuration and aggregation.
    pub fn start_default(arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(["run", "--format", "json"]).args(arguments);
        // Tests that run in parallel must not fill this monitor's ring.
        if !arguments.contains(&"--ring-size") {
            command.args(["--ring-size", "16777216"]);
        }
        Self::spawn(&mut command)
    }

    /// As [`start`](Self::start), but runs the given command.
    pub fn spawn(command: &mut Command) -> Self {
        let Unread {
            child,
            start_line,
            stdout,
            stderr,
        } = Unread::spawn(command);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines() {
                if sender.send(line.unwrap()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            start_line,
            lines,
            stderr: Some(stderr),
        }
    }

    /// The next line on stderr.
    pub fn log_line(&mut self) -> String {
        let mut line = String::new();
        let stderr = self.stderr.as_mut().expect("not finished");
        stderr.read_line(&mut line).unwrap();
        line
    }

    /// The next line on stdout, of any network namespace.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(TIMEOUT).expect("a line")
    }

    /// The next alert from that network namespace.
    pub fn alert(&self, netns: u64) -> Value {
        loop {
            // Alerts about other tests' sockets are skipped.
            let alert = json(&self.line());
            assert_ne!(alert["event"], "loss", "{alert}");
            if alert["socket"]["netns"] == netns {
                return valid(alert);
            }
        }
    }

    /// The next `health` alert.
    pub fn health(&self) -> Value {
        loop {
            let alert = json(&self.line());
            if alert["event"] == "health" {
                return valid(alert);
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next `count` alerts from that network namespace.
    pub fn alerts(&self, netns: u64, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.alert(netns)).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Stops it with `signal`; it must exit with 0 and log nothing more. Returns its remaining
    /// alerts from that network namespace.
    pub fn stop_with(mut self, signal: Signal, netns: u64) -> Vec<Value> {
        self.signal(signal);
        let finished = self.finish();
        assert!(
            finished.status.success(),
            "{:?}: {}",
            finished.status,
            finished.stderr
        );
        assert_eq!(finished.stderr, "");
        finished
            .stdout
            .lines()
            .map(json)
            .filter(|alert| alert["socket"]["netns"] == netns)
            .map(valid)
            .collect()
    }

    /// Stops it as [`stop_with`](Self::stop_with), and fails on a further alert from that network
    /// namespace.
    pub fn stop_without_more(self, netns: u64) {
        let rest = self.stop_with(Signal::SIGTERM, netns);
        assert!(rest.is_empty(), "{rest:?}");
    }

    /// Stops it; returns its remaining alerts from all network namespaces. For a monitor that
    /// watches only the test's own cgroup.
    pub fn stop_all(mut self) -> Vec<Value> {
        self.signal(Signal::SIGTERM);
        let finished = self.finish();
        assert!(finished.status.success(), "{}", finished.stderr);
        finished.stdout.lines().map(json).map(valid).collect()
    }

    /// Waits for its end; returns what the test has not read yet.
    pub fn finish(&mut self) -> Finished {
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        if let Some(mut reader) = self.stderr.take() {
            reader.read_to_string(&mut stderr).unwrap();
        }
        let stdout: String = self.lines.iter().map(|line| line + "\n").collect();
        Finished {
            status,
            stdout,
            stderr,
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The test has failed before it stopped the monitor.
        if self.stderr.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A running monitor whose stdout the test reads itself, or not at all.
pub struct Unread {
    pub child: Child,
    pub start_line: String,
    pub stdout: BufReader<ChildStdout>,
    pub stderr: BufReader<ChildStderr>,
}

impl Unread {
    /// Runs `command` and waits until it watches the host.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut start_line = String::new();
        stderr.read_line(&mut start_line).unwrap();
        assert!(start_line.starts_with("portwatch: armed: "), "{start_line}");
        Self {
            child,
            start_line,
            stdout,
            stderr,
        }
    }
}

/// Copies a program. Uses cp(1): a child that another test forks meanwhile would inherit this
/// process's descriptor of the copy, open for writing, and execve(2) would fail with ETXTBSY.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

/// Runs `portwatch` to its end.
pub fn run(arguments: &[&str]) -> Finished {
    finish(Command::new(binary()).args(arguments))
}

/// The alerts that `list` prints about that network namespace.
pub fn listed(netns: u64, arguments: &[&str]) -> Vec<Value> {
    let list = run(&[&["list", "--format", "json"], arguments].concat());
    assert!(list.status.success(), "{}", list.stderr);
    assert_eq!(list.stderr, "");
    let alerts = list.stdout.lines().map(json);
    alerts
        .filter(|alert| alert["socket"]["netns"] == netns)
        .map(valid)
        .collect()
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Finished {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Finished {
        status: output.status,
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// How many events of each kind are reported or counted, without what a scan showed.
pub fn totals(alerts: &[Value]) -> BTreeMap<String, u64> {
    let mut totals = BTreeMap::new();
    for alert in alerts.iter().filter(|alert| alert["origin"] != "snapshot") {
        let event = alert["event"].as_str().unwrap().to_owned();
        match alert["summary"]["counts"].as_object() {
            Some(counts) => {
                for (event, count) in counts {
                    *totals.entry(event.clone()).or_default() += count.as_u64().unwrap();
                }
            }
            None => *totals.entry(event).or_default() += 1,
        }
    }
    totals
}
