//! The monitor's parts, in instructions, which other load on the machine does not change.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Figure, Profile, Row};
use crate::{cargo, output};

/// Iterations of a part under callgrind in the first run; the second has twice as many, so that the
/// difference excludes the start.
const TIMES: u32 = 500;

pub(super) fn measure(profile: Profile) -> Result<Vec<Row>> {
    let program = build()?;
    let names = output(Command::new(&program).arg("--names"))?;
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    names
        .lines()
        .map(|name| {
            let [once, twice] = [TIMES, 2 * TIMES].map(|times| instructions(&program, name, times));
            let each = twice?.saturating_sub(once?) / u64::from(TIMES);
            let timed = output(Command::new(&program).args([
                "--count",
                &profile.operations.to_string(),
                name,
            ]))?;
            let ns = String::from_utf8_lossy(&timed.stdout).trim().parse()?;
            Ok(Row::new(name)
                .with("instructions", Figure::count(each))
                .with("ns", Figure::Count(ns)))
        })
        .collect()
}

/// Builds the bench program, in a target directory of its own: it builds the monitor with other features
/// than the released one.
fn build() -> Result<String> {
    let target = crate::target().join("parts");
    let target = target.to_str().context("a path that is not UTF-8")?;
    let bench = [
        "bench",
        "--locked",
        "--package",
        "portwatch",
        "--bench",
        "parts",
        "--features",
        "testing",
    ];
    let built = output(
        cargo()
            .args(bench)
            .args(["--no-run", "--message-format", "json"])
            .args(["--target-dir", target]),
    )?;
    let messages = String::from_utf8_lossy(&built.stdout);
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["target"]["name"] == "parts")
        .find_map(|message| Some(message["executable"].as_str()?.to_owned()))
        .context("cargo built no program")
}

/// The instructions of a whole run, counted by callgrind.
fn instructions(program: &str, name: &str, times: u32) -> Result<u64> {
    let counted = output(
        Command::new("valgrind")
            .args([
                "--tool=callgrind",
                "--callgrind-out-file=/dev/null",
                program,
            ])
            .args(["--count", &times.to_string(), name]),
    )?;
    let stderr = String::from_utf8_lossy(&counted.stderr);
    stderr
        .lines()
        .find_map(|line| line.split_once("Collected : ")?.1.parse().ok())
        .with_context(|| format!("no instruction count in valgrind's output: {stderr}"))
}
