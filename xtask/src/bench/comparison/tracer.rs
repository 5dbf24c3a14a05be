//! A tracer of binds or accepts, as a child process whose lines are counted.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{super::end_with_this_thread, traced::Work};

/// A text that a line about the work contains; other programs bind ports, too.
pub(super) enum Mark {
    Text(String),
    Word(String),
}

/// A program to compare, and how its lines are recognised.
pub(super) struct Tracer {
    pub(super) name: &'static str,
    pub(super) command: Vec<String>,
    pub(super) marks: Vec<Mark>,
    /// For a polling shell loop: the program that it runs, whose memory is measured.
    pub(super) repeats: Option<Vec<String>>,
}

impl Tracer {
    pub(super) fn new(name: &'static str, command: &[&str], marks: Vec<Mark>) -> Self {
        Self {
            name,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            marks,
            repeats: None,
        }
    }

    fn is_ours(&self, line: &str) -> bool {
        self.marks.iter().all(|mark| match mark {
            Mark::Text(text) => line.contains(text),
            Mark::Word(word) => line.split_ascii_whitespace().any(|one| one == word),
        })
    }
}

/// Longer than the interval of a polling tracer.
const SILENCE: Duration = Duration::from_millis(1300);

/// bcc compiles its program first, which takes half a minute in an emulated machine.
const START_TIMEOUT: Duration = Duration::from_mins(5);

/// How often the program of a polling loop is run to measure its memory.
const RUNS: u32 = 10;

/// A running tracer.
pub(super) struct Running {
    child: Child,
    lines: mpsc::Receiver<Instant>,
    other: Arc<Mutex<String>>,
    repeats: Option<Vec<String>>,
}

impl Running {
    /// Starts it, waits for its first line about the work, and discards the lines that follow.
    pub(super) fn start(tracer: &Arc<Tracer>, work: &Work) -> Result<Self> {
        let (program, arguments) = tracer.command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            // bcc's tools are Python, which buffers lines on a pipe.
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        end_with_this_thread(&mut command);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let (sender, lines) = mpsc::channel();
        let other = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().context("no pipe")?;
        let stderr = child.stderr.take().context("no pipe")?;
        let unused = mpsc::channel().0;
        read(stdout, Arc::clone(tracer), sender, Arc::clone(&other));
        read(stderr, Arc::clone(tracer), unused, Arc::clone(&other));
        let mut running = Self {
            child,
            lines,
            other,
            repeats: tracer.repeats.clone(),
        };
        running.wait_until_ready(work)?;
        Ok(running)
    }

    fn wait_until_ready(&mut self, work: &Work) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let _held = work.open()?;
            if self.next(Duration::from_millis(20)).is_some() {
                break;
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                // Its last lines may not have been read yet.
                thread::sleep(Duration::from_millis(100));
                let output = self.other.lock().map(|text| text.clone());
                let output = output.unwrap_or_default();
                let end = ended.map_or("no output".into(), |status| status.to_string());
                bail!("failed: {end}: {}", output.replace(['\n', '|'], " ").trim());
            }
        }
        self.drain();
        Ok(())
    }

    /// When the next line about the work was read.
    pub(super) fn next(&self, within: Duration) -> Option<Instant> {
        self.lines.recv_timeout(within).ok()
    }

    /// Discards and counts the remaining lines about the work.
    pub(super) fn drain(&self) -> i64 {
        let mut count = 0;
        while self.next(SILENCE).is_some() {
            count += 1;
        }
        count
    }

    /// Its resident memory in kilobytes.
    pub(super) fn memory(&self) -> Result<u64> {
        let Some(repeats) = &self.repeats else {
            return status(self.child.id(), "VmRSS:").context("it has ended");
        };
        let (program, arguments) = repeats.split_first().context("no command")?;
        let mut peak = 0;
        // It ends quickly: not every run is sampled at its peak.
        for _ in 0..RUNS {
            let mut child = Command::new(program)
                .args(arguments)
                .stdout(Stdio::null())
                .spawn()?;
            // The status of a process that has ended has no memory lines.
            while let Some(memory) = status(child.id(), "VmHWM:") {
                peak = peak.max(memory);
            }
            child.wait()?;
        }
        Ok(peak)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its children are in its process group.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Sends the time of each line about the work, and keeps the last other lines.
fn read(
    from: impl Read + Send + 'static,
    tracer: Arc<Tracer>,
    sender: mpsc::Sender<Instant>,
    other: Arc<Mutex<String>>,
) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = String::new();
        while from.read_line(&mut line).is_ok_and(|read| read > 0) {
            let now = Instant::now();
            if tracer.is_ours(&line) {
                let _ = sender.send(now);
            } else if let Ok(mut other) = other.lock() {
                if other.len() > 500 {
                    other.clear();
                }
                other.push_str(&line);
            }
            line.clear();
        }
    });
}

/// A line of /proc/PID/status, in kilobytes.
fn status(pid: u32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| {
        let value = line.strip_prefix(key)?;
        value.split_ascii_whitespace().next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_ours_when_it_has_every_mark() {
        let marks = vec![Mark::Word("1".into()), Mark::Text("976".into())];
        let tracer = Tracer::new("one", &["true"], marks);
        assert!(tracer.is_ours("1    init  4 127.0.0.1 50744 127.0.0.1 976  "));
        assert!(!tracer.is_ours("11   init  4 127.0.0.1 50744 127.0.0.1 976  "));
        assert!(!tracer.is_ours("1    init  4 127.0.0.1 50744 127.0.0.1 977  "));
    }
}
