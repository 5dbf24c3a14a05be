//! Measures the monitor's parts with criterion. `--names` prints their names; `--count TIMES PART` runs one
//! part that often and nothing else, for callgrind, and prints the nanoseconds per run.

#![forbid(unsafe_code)]

use std::time::Instant;

use anyhow::{Context as _, Result};
use criterion::Criterion;
use portwatch::testing;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--names") => {
            for (name, _) in testing::parts()? {
                println!("{name}");
            }
            return Ok(());
        }
        Some("--count") => {
            let times = arguments.next().context("missing TIMES")?.parse()?;
            return count(times, &arguments.next().context("missing PART")?);
        }
        _ => {}
    }
    let mut criterion = Criterion::default().configure_from_args();
    for (name, mut part) in testing::parts()? {
        criterion.bench_function(name, |bencher| bencher.iter(&mut part));
    }
    criterion.final_summary();
    Ok(())
}

fn count(times: u32, name: &str) -> Result<()> {
    let mut parts = testing::parts()?.into_iter();
    let (_, mut part) = parts
        .find(|(other, _)| *other == name)
        .with_context(|| format!("unknown part {name}"))?;
    let began = Instant::now();
    for _ in 0..times {
        part();
    }
    println!("{}", began.elapsed().as_nanos() / u128::from(times));
    Ok(())
}
