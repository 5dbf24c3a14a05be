//! The monitor as a child process, and its processor time and memory.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::end_with_this_thread;

/// The capacity of a pipe in bytes (pipe(7)).
const PIPE: usize = 65_536;

/// A running monitor without rules.
pub(super) struct Agent {
    child: Child,
    /// From exec to the start line.
    pub(super) armed_in: Duration,
}

impl Agent {
    /// Starts it with its alerts discarded.
    pub(super) fn start(arguments: &[&str]) -> Result<Self> {
        Self::spawn(arguments, Stdio::null())
    }

    /// Starts it with its alerts on a pipe.
    pub(super) fn piped(arguments: &[&str]) -> Result<(Self, BufReader<ChildStdout>)> {
        let mut agent = Self::spawn(arguments, Stdio::piped())?;
        let stdout = agent.child.stdout.take().context("no pipe")?;
        Ok((agent, BufReader::with_capacity(PIPE, stdout)))
    }

    fn spawn(arguments: &[&str], stdout: Stdio) -> Result<Self> {
        let began = Instant::now();
        let mut command = Command::new(crate::agent());
        command
            .args(["run", "--format", "json", "--config", "/dev/null"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped());
        end_with_this_thread(&mut command);
        let mut child = command.spawn().context("starting the monitor")?;
        let mut line = String::new();
        let stderr = child.stderr.take().context("no pipe")?;
        let mut stderr = BufReader::new(stderr);
        stderr.read_line(&mut line)?;
        let armed_in = began.elapsed();
        if !line.contains("armed") {
            bail!("the monitor did not start: {line}");
        }
        // Later messages must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        // The scan at its start is not measured.
        std::thread::sleep(Duration::from_millis(300));
        Ok(Self { child, armed_in })
    }

    /// User and system time so far, in seconds (proc_pid_stat(5)).
    pub(super) fn processor_time(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, rest) = stat
            .rsplit_once(')')
            .context("unexpected format of /proc/PID/stat")?;
        let mut words = rest.split_ascii_whitespace().skip(11);
        let mut ticks = || {
            words
                .next()
                .and_then(|word| word.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        Ok((ticks() + ticks()) / 100.0)
    }

    /// A value of /proc/PID/smaps_rollup, in kilobytes.
    pub(super) fn memory(&self, key: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        text.lines()
            .find_map(|line| {
                line.strip_prefix(key)?
                    .split_ascii_whitespace()
                    .nth(1)?
                    .parse()
                    .ok()
            })
            .with_context(|| format!("no {key} in smaps_rollup"))
    }

    pub(super) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
