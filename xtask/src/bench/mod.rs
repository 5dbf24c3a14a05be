//! `cargo xtask bench`: what portwatch costs, each figure beside the same work without it, in one run.
//!
//! Rounds with and without the agent take turns, so that what else the machine does falls on both. Only
//! ratios and counts of one run mean anything.

mod agent;
mod bpf;
mod cost;
mod empty;
mod figure;
mod latency;
mod parts;
mod peers;
mod snapshot;
mod standing;
mod throughput;
mod work;

use std::{fs, path::PathBuf, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use self::figure::table;
pub(crate) use self::{
    figure::{Figure, Row, median, quantile, spread},
    peers::{GuestOptions, run_guest},
};
use crate::tools;

/// What of it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// What those pay who are not watched
    Bystanders,
    /// What a reported event costs, and each BPF program
    Event,
    /// The agent's parts
    Parts,
    /// From bind() to the line on the pipe
    Latency,
    /// How many events a second get through, and what that costs
    Throughput,
    /// Start, memory, idle time, size
    Standing,
    /// `portwatch list` beside ss and lsof
    Snapshot,
    /// bpftrace, polling ss, and bcc's tools in a guest, at the same binds and accepts
    Peers,
}

#[derive(Args)]
pub(crate) struct Options {
    /// What to measure [default: all]
    sections: Vec<Section>,
    /// Some minutes instead of twenty; its figures are no more than signs that the harness works
    #[arg(long)]
    quick: bool,
    /// Write the figures as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How long and how often.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
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
    let effort = if options.quick {
        Effort {
            rounds: 3,
            operations: 5_000,
            seconds: Duration::from_secs(2),
            sockets: &[(100, 1), (1_000, 10)],
        }
    } else {
        Effort {
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
            Section::Bystanders => isolated(|| cost::bystanders(effort)),
            Section::Event => isolated(|| cost::event(effort)),
            Section::Parts => parts::measure(effort),
            Section::Latency => isolated(|| latency::measure(effort)),
            Section::Throughput => isolated(|| throughput::measure(effort)),
            Section::Standing => isolated(|| standing::measure(effort)),
            Section::Snapshot => isolated(|| snapshot::measure(effort)),
            Section::Peers => peers::measure(effort),
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

/// What the figures are of.
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

/// Works in a network namespace of its own: nobody else's ports are in the way, nor these in anybody's.
pub(crate) fn isolated<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            loopback("ip")?;
            work()
        });
        inside.join().map_err(|_| anyhow!("it ended early"))?
    })
}

fn loopback(ip: &str) -> Result<()> {
    super::run(Command::new(ip).args(["link", "set", "lo", "up"]))
}
