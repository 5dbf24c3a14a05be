//! `cargo xtask vm`: the conformance suite on Debian's kernels, each booted in QEMU.

mod cpio;
mod guest;
mod kernels;
mod modules;
mod table;

use std::{
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

pub(crate) use self::{
    cpio::Archive,
    guest::{Guest, emulate, static_programs},
    kernels::{mirror, named as kernel},
};
use self::{guest::Binaries, kernels::Kernel, table::Column};
use crate::tools;

/// Options of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kernels to boot: 5.10, 6.1, 6.12, sid [default: all]
    kernels: Vec<String>,
    /// Fail also when the newest kernel, sid's, fails
    #[arg(long)]
    strict: bool,
    /// Kernels that run at the same time [default: one per CPU]
    #[arg(long)]
    jobs: Option<usize>,
    /// Seconds after which a kernel counts as hung
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Write the table into docs/coverage.md (needs all kernels)
    #[arg(long)]
    write: bool,
}

/// Boots the kernels, prints the table, and fails when a kernel fails or the committed table differs.
pub(crate) fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let kernels = kernels::select(&options.kernels)?;
    let whole = kernels.len() == kernels::ALL.len();
    if options.write && !whole {
        bail!("--write needs all kernels: name none");
    }
    tools::set_up()?;
    tools::set_up_vm()?;
    let binaries = guest::build()?;
    let columns = run_all(&kernels, &binaries, options);
    println!("{}", table::print(&columns));
    println!("wall time: {} s", started.elapsed().as_secs());

    let mut failed = Vec::new();
    for column in &columns {
        if let Some(problem) = column.problem() {
            eprintln!("xtask: {}: {problem}", column.kernel.name);
            if column.kernel.must_pass || options.strict {
                failed.push(column.kernel.name);
            } else {
                eprintln!(
                    "xtask: NOT CHECKED STRICTLY: the newest kernel fails (see above; --strict makes this an error)"
                );
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    if options.write {
        table::write(&columns)?;
    } else if whole {
        table::check(&columns)?;
    }
    Ok(())
}

/// Runs the suite on each kernel, `--jobs` at a time; returns the columns in the order of `kernels`.
fn run_all(kernels: &[&'static Kernel], binaries: &Binaries, options: &Options) -> Vec<Column> {
    let jobs = options
        .jobs
        .or_else(|| thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1)
        .clamp(1, kernels.len());
    let timeout = Duration::from_secs(options.timeout);
    let (give, columns) = channel();
    let queue = std::sync::Mutex::new(kernels.iter().enumerate());
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (give, queue) = (give.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().map(|mut queue| queue.next());
                    let Ok(Some((index, kernel))) = next else {
                        break;
                    };
                    let column = guest::run(kernel, binaries, timeout);
                    let _ = give.send((index, column));
                }
            });
        }
    });
    drop(give);
    let mut columns: Vec<(usize, Column)> = columns.into_iter().collect();
    columns.sort_by_key(|(index, _)| *index);
    columns.into_iter().map(|(_, column)| column).collect()
}
