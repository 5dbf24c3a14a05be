//! Start time, memory, idle processor time and size.

use std::{process::Command, thread};

use anyhow::{Context as _, Result};

use super::{Figure, Profile, Row, agent::Agent, spread, work};

pub(super) fn measure(profile: Profile) -> Result<Vec<Row>> {
    let mut armed = Vec::new();
    for _ in 0..profile.rounds {
        let agent = Agent::start(&[])?;
        armed.push(agent.armed_in.as_secs_f64() * 1e3);
        agent.stop()?;
    }
    let agent = Agent::start(&[])?;
    let memory = || -> Result<[Figure; 2]> {
        let [rss, pss] = ["Rss", "Pss"].map(|key| agent.memory(key));
        Ok([Figure::count(rss?), Figure::count(pss?)])
    };
    let idle_memory = memory()?;
    let before = agent.processor_time()?;
    let idle = profile.seconds * 6;
    thread::sleep(idle);
    let idle_share = (agent.processor_time()? - before) / idle.as_secs_f64() * 100.0;
    let binds = profile.operations * 12;
    work::time(binds, || work::bind(976))?;
    thread::sleep(std::time::Duration::from_secs(2));
    let memory_after = memory()?;
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
    let [rss, pss] = idle_memory;
    let [rss_after, pss_after] = memory_after;
    let idle_time = format!("processor time over {} idle seconds, %", idle.as_secs());
    let events = binds * 2;
    Ok([
        ("exec to armed, ms (middle half)", spread(&mut armed, 1)),
        ("RSS when idle, kB", rss),
        ("PSS when idle, kB", pss),
        (&format!("RSS after {events} events, kB"), rss_after),
        (&format!("PSS after {events} events, kB"), pss_after),
        (&idle_time, Figure::Number(idle_share, 2)),
        (
            "executable, stripped, MB",
            Figure::Number(size as f64 / 1e6, 1),
        ),
        ("crates linked", Figure::count(crates.len())),
    ]
    .into_iter()
    .map(|(what, figure)| Row::new(what).with("value", figure))
    .collect())
}
