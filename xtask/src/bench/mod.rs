//! `cargo xtask bench`: the cost of portwatch, each figure against the same work without it, in one run.
//!
//! Rounds with and without the monitor alternate, so that other load on the machine affects both. Only
//! ratios and counts of one run are meaningful.

mod agent;
mod bpf;
mod comparison;
mod cost;
mod empty;
mod figure;
mod footprint;
mod latency;
mod parts;
mod receive;
mod snapshot;
mod throughput;
mod work;

use std::{
    fs, os::unix::process::CommandExt as _, path::PathBuf, process::Command, thread, time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};
use serde_json::{Value, json};

use self::figure::table;
pub(crate) use self::{
    comparison::{GuestOptions, run_guest},
    figure::{Figure, Row, median, quantile, spread},
};
use crate::tools;

/// A section of the benchmark; its help text is the title of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// Cost of events on unwatched ports
    Unwatched,
    /// Cost of a reported event, in total and per BPF program
    Event,
    /// Cost of datagrams, and when they are first seen
    Receive,
    /// Instructions and time of the monitor's parts
    Parts,
    /// Delay from bind() to a readable alert
    Latency,
    /// Throughput and losses at full rate
    Throughput,
    /// Start time, memory, idle processor time, size
    Footprint,
    /// `portwatch list` compared with ss and lsof
    Snapshot,
    /// Comparison with bpftrace, polling ss, and bcc's tools in a guest
    Comparison,
}

#[derive(Args)]
pub(crate) struct Options {
    /// Sections to measure [default: all]
    sections: Vec<Section>,
    /// Take some minutes instead of twenty: checks that the harness works, the figures are too noisy
    #[arg(long)]
    quick: bool,
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How long and how often each section measures.
#[derive(Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) rounds: usize,
    pub(crate) operations: u32,
    pub(crate) seconds: Duration,
    pub(crate) sockets: &'static [(usize, usize)],
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if !super::is_root() {
        bail!("the benchmark loads BPF programs: run it as root");
    }
    super::build()?;
    tools::set_up_tests()?;
    tools::set_up_bench()?;
    let profile = if options.quick {
        Profile {
            rounds: 3,
            operations: 5_000,
            seconds: Duration::from_secs(2),
            sockets: &[(100, 1), (1_000, 10)],
        }
    } else {
        Profile {
            rounds: 11,
            operations: 40_000,
            seconds: Duration::from_secs(10),
            sockets: &[
                (100, 1),
                (1_000, 1),
                (10_000, 1),
                (10_000, 10),
                (10_000, 50),
            ],
        }
    };
    let machine = machine();
    println!("\n{machine}");
    let mut sections = Vec::new();
    for section in Section::value_variants() {
        if !options.sections.is_empty() && !options.sections.contains(section) {
            continue;
        }
        let title = section
            .to_possible_value()
            .and_then(|value| value.get_help().map(ToString::to_string))
            .unwrap_or_default();
        println!("\n{title}\n");
        let rows = match section {
            Section::Unwatched => isolated(|| cost::unwatched(profile)),
            Section::Event => isolated(|| cost::event(profile)),
            Section::Receive => isolated(|| receive::measure(profile)),
            Section::Parts => parts::measure(profile),
            Section::Latency => isolated(|| latency::measure(profile)),
            Section::Throughput => isolated(|| throughput::measure(profile)),
            Section::Footprint => isolated(|| footprint::measure(profile)),
            Section::Snapshot => isolated(|| snapshot::measure(profile)),
            Section::Comparison => comparison::measure(profile),
        }?;
        print!("{}", table(&rows));
        let rows: Vec<Value> = rows.iter().map(Row::as_json).collect();
        sections.push(json!({ "section": title, "rows": rows }));
    }
    if let Some(path) = &options.json {
        let all = json!({ "machine": machine, "sections": sections });
        let text = serde_json::to_string_pretty(&all)?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The machine that the figures come from.
fn machine() -> String {
    let kernel = nix::sys::utsname::uname().map_or_else(
        |_| "an unknown kernel".into(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = processors
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let models: Vec<&str> = models.map(|(_, model)| model).collect();
    let model = models.first().unwrap_or(&"processors of an unknown model");
    let count = thread::available_parallelism().map_or(0, usize::from);
    format!("{count} x {model}, Linux {kernel}")
}

/// Runs `work` in a new network namespace, so that its ports conflict with nobody's.
pub(crate) fn isolated<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            loopback("ip")?;
            work()
        });
        inside
            .join()
            .map_err(|_| anyhow!("the measuring thread panicked"))?
    })
}

/// Lets the kernel kill the program when this thread ends, so that a killed benchmark leaves no monitor
/// running. The signal follows the thread, not the process (`PR_SET_PDEATHSIG` in prctl(2)): spawn from a thread
/// that outlives the program.
fn end_with_this_thread(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

fn loopback(ip: &str) -> Result<()> {
    super::run(Command::new(ip).args(["link", "set", "lo", "up"]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("60");
            end_with_this_thread(&mut command);
            command.spawn().unwrap()
        };
        let mut child = thread::spawn(start).join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }
}
