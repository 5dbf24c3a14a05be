//! The agent as a child process.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
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

/// How long anything may take before a test gives up; nothing waits for as long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's executable.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_portwatch"))
}

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let schema = include_str!("../../../../docs/alert.schema.json");
    jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap()
});

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// The alert, which must keep to the published schema.
fn valid(alert: Value) -> Value {
    let errors: Vec<String> = SCHEMA
        .iter_errors(&alert)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?} in {alert}");
    alert
}

/// A running monitor that prints JSON.
pub struct Agent {
    child: Child,
    /// What it said when it was armed.
    pub armed: String,
    lines: mpsc::Receiver<String>,
    stderr: Option<BufReader<ChildStderr>>,
}

/// How a process ended.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Agent {
    /// Starts `portwatch run --format json` without rules and without collapse, with these
    /// arguments, and waits until it is armed.
    pub fn start(arguments: &[&str]) -> Self {
        let plain = ["--no-collapse", "--config", "/dev/null"];
        Self::start_quiet(&[&plain, arguments].concat())
    }

    /// As `start`, as an operator would have it.
    pub fn start_quiet(arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(["run", "--format", "json"]).args(arguments);
        // Room for what other tests flood the host with, unless the test is about that.
        if !arguments.contains(&"--ring-size") {
            command.args(["--ring-size", "16777216"]);
        }
        Self::spawn(&mut command)
    }

    /// As `start`, with a command of the caller's.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut armed = String::new();
        stderr.read_line(&mut armed).unwrap();
        assert!(armed.starts_with("portwatch: armed: "), "{armed}");
        let stdout = BufReader::new(child.stdout.take().unwrap());
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
            armed,
            lines,
            stderr: Some(stderr),
        }
    }

    /// What it says next on stderr.
    pub fn said(&mut self) -> String {
        let mut line = String::new();
        let stderr = self.stderr.as_mut().expect("not finished");
        stderr.read_line(&mut line).unwrap();
        line
    }

    /// The next line, whatever it is.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// The next alert from that network namespace.
    pub fn alert(&self, netns: u64) -> Value {
        loop {
            // Other tests' alerts are theirs to judge.
            let alert = json(&self.line());
            assert_ne!(alert["event"], "loss", "{alert}");
            if alert["socket"]["netns"] == netns {
                return valid(alert);
            }
        }
    }

    /// The next alert about the sensor itself.
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

    /// The next alerts from that network namespace, that many.
    pub fn alerts(&self, netns: u64, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.alert(netns)).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Stops it with `signal`, which must end it well; what it still printed from that network
    /// namespace.
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

    /// Stops it; what it still printed from that network namespace.
    pub fn stop(self, netns: u64) -> Vec<Value> {
        self.stop_with(Signal::SIGTERM, netns)
    }

    /// Waits for its end; what it had not been asked for yet.
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

impl Drop for Agent {
    fn drop(&mut self) {
        // Only when a test failed before it stopped the agent.
        if self.stderr.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Copies a program. By `cp`, since a child that another test forks meanwhile would inherit a
/// descriptor of this process that is open for writing, and nobody could run the copy (ETXTBSY).
pub fn copy_program(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

/// Runs the agent's executable to its end.
pub fn run(arguments: &[&str]) -> Finished {
    finish(Command::new(binary()).args(arguments))
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
