//! What it takes to have it there.

use std::{process::Command, thread};

use anyhow::{Context as _, Result};

use super::{Effort, Row, agent::Agent, spread, work};

pub(super) fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut armed = Vec::new();
    for _ in 0..effort.rounds {
        let agent = Agent::start(&[])?;
        armed.push(agent.armed_in.as_secs_f64() * 1e3);
        agent.stop()?;
    }
    let agent = Agent::start(&[])?;
    let memory = |agent: &Agent| -> Result<(String, String)> {
        let [rss, pss] = ["Rss", "Pss"].map(|key| agent.memory(key));
        Ok((format!("{} kB", rss?), format!("{} kB", pss?)))
    };
    let (rss, pss) = memory(&agent)?;
    let before = agent.processor_time()?;
    let idle = effort.seconds * 6;
    thread::sleep(idle);
    let idle_share = (agent.processor_time()? - before) / idle.as_secs_f64() * 100.0;
    let binds = effort.operations * 12;
    work::time(binds, || work::bind(976))?;
    thread::sleep(std::time::Duration::from_secs(2));
    let (rss_after, pss_after) = memory(&agent)?;
    agent.stop()?;
    let size = std::fs::metadata(crate::agent())?.len();
    let tree = Command::new("cargo")
        .args([
            "tree",
            "--package",
            "portwatch",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--no-dedupe",
        ])
        .output()
        .context("starting cargo tree")?;
    let tree = String::from_utf8_lossy(&tree.stdout);
    let mut crates: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split(" (").next())
        .collect();
    crates.sort_unstable();
    crates.dedup();
    Ok(vec![
        Row::new("exec to armed, ms (middle half)").with("", spread(&mut armed, 1)),
        Row::new("RSS, PSS when idle").with("", format!("{rss}, {pss}")),
        Row::new(format!("RSS, PSS after {} events", binds * 2))
            .with("", format!("{rss_after}, {pss_after}")),
        Row::new(format!("processor over {} idle seconds", idle.as_secs()))
            .with("", format!("{idle_share:.2} %")),
        Row::new("the program, stripped").with("", format!("{:.1} MB", size as f64 / 1e6)),
        Row::new("crates in it").with("", crates.len().to_string()),
    ])
}
