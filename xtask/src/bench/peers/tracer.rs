//! One who tells of binds or accepts, as a child whose lines are counted.

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

use super::rounds::Work;

/// What a line must hold to be about the work: other programs take ports, too.
pub(super) enum Mark {
    Text(String),
    Word(String),
}

/// A program to compare, and how its lines are known.
pub(super) struct Tracer {
    pub(super) name: &'static str,
    pub(super) command: Vec<String>,
    pub(super) marks: Vec<Mark>,
    /// For one that starts a program again and again: that program, whose memory counts.
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

/// Longer than a poll takes to come round.
const QUIET: Duration = Duration::from_millis(1300);

/// bcc compiles its program first, and does so for half a minute in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often a program that is started again and again is looked at.
const RUNS: u32 = 10;

/// A tracer at work.
pub(super) struct Running {
    child: Child,
    lines: mpsc::Receiver<Instant>,
    other: Arc<Mutex<String>>,
    repeats: Option<Vec<String>>,
}

impl Running {
    /// Starts it and waits until it has told of the work once, and of nothing any more.
    pub(super) fn start(tracer: &Arc<Tracer>, work: &Work) -> Result<Self> {
        let (program, arguments) = tracer.command.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            // bcc's tools are Python, which else keeps its lines back from a pipe.
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let (sender, lines) = mpsc::channel();
        let other = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().context("no pipe")?;
        let stderr = child.stderr.take().context("no pipe")?;
        let nobody = mpsc::channel().0;
        read(stdout, Arc::clone(tracer), sender, Arc::clone(&other));
        read(stderr, Arc::clone(tracer), nobody, Arc::clone(&other));
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
        let deadline = Instant::now() + PATIENCE;
        loop {
            let _held = work.take()?;
            if self.next(Duration::from_millis(20)).is_some() {
                break;
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                // What it said last is still on its way.
                thread::sleep(Duration::from_millis(100));
                let said = self.other.lock().map(|said| said.clone());
                let said = said.unwrap_or_default();
                let end = ended.map_or("silent".into(), |status| status.to_string());
                bail!("refused: {end}: {}", said.replace(['\n', '|'], " ").trim());
            }
        }
        self.drain();
        Ok(())
    }

    /// When the next line about the work could be read.
    pub(super) fn next(&self, within: Duration) -> Option<Instant> {
        self.lines.recv_timeout(within).ok()
    }

    /// How many lines about the work still come.
    pub(super) fn drain(&self) -> i64 {
        let mut count = 0;
        while self.next(QUIET).is_some() {
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
        // It is quick: not each time is it seen at its largest.
        for _ in 0..RUNS {
            let mut child = Command::new(program)
                .args(arguments)
                .stdout(Stdio::null())
                .spawn()?;
            // A program that has ended has no memory, and its status does not say so any more.
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
        // What it has started goes with it.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Sends the time of each line about the work, and keeps the end of what else there is.
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
