//! The agent's parts, by criterion. `--names` prints their names; with `--count TIMES PART` the part is
//! done that often and nothing else, for callgrind, and the nanoseconds of one are printed.

use std::time::Instant;

use anyhow::{Context as _, Result};
use criterion::Criterion;
use portwatch::testing;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--names") => {
            for (name, _) in parts::all()? {
                println!("{name}");
            }
            return Ok(());
        }
        Some("--count") => {
            let times = arguments.next().context("how often?")?.parse()?;
            return count(times, &arguments.next().context("which part?")?);
        }
        _ => {}
    }
    let mut criterion = Criterion::default().configure_from_args();
    for (name, mut part) in parts::all()? {
        criterion.bench_function(name, |bencher| bencher.iter(&mut part));
    }
    criterion.final_summary();
    Ok(())
}

fn count(times: u32, name: &str) -> Result<()> {
    let mut parts = parts::all()?.into_iter();
    let (_, mut part) = parts
        .find(|(other, _)| *other == name)
        .with_context(|| format!("no part {name}"))?;
    let began = Instant::now();
    for _ in 0..times {
        part();
    }
    println!("{}", began.elapsed().as_nanos() / u128::from(times));
    Ok(())
}
