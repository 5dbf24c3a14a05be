//! The agent's parts, in instructions: the figure that is the same on a busy machine.

use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Effort, Figure, Row};
use crate::cargo;

/// How often a part is done under callgrind, the first time; the second time it is twice that, so that
/// the difference is without the start.
const TIMES: u32 = 500;

pub(super) fn measure(effort: Effort) -> Result<Vec<Row>> {
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
                &effort.operations.to_string(),
                name,
            ]))?;
            let ns = String::from_utf8_lossy(&timed.stdout).trim().parse()?;
            Ok(Row::new(name)
                .with("instructions", Figure::count(each))
                .with("ns", Figure::Count(ns)))
        })
        .collect()
}

/// The benches' program, as cargo builds it: elsewhere, since it builds the agent too, and not as it is
/// shipped.
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
        .context("cargo names no program")
}

/// What callgrind counts of all that the program does.
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
    let said = String::from_utf8_lossy(&counted.stderr);
    said.lines()
        .find_map(|line| line.split_once("Collected : ")?.1.parse().ok())
        .with_context(|| format!("valgrind counts nothing: {said}"))
}

fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(output)
}
