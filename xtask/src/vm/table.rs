//! The table of scenarios and kernels, on the terminal and in docs/coverage.md.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, bail};

use super::kernels::Kernel;

/// The result of one scenario on one kernel.
pub(super) struct Row {
    pub(super) scenario: String,
    /// `ok`, `n/a` or `failed`.
    pub(super) outcome: String,
    pub(super) detail: String,
}

/// The results of all scenarios on one kernel.
pub(super) struct Column {
    pub(super) kernel: &'static Kernel,
    pub(super) release: String,
    pub(super) rows: Vec<Row>,
    /// Why the guest did not finish the suite.
    pub(super) error: Option<String>,
    pub(super) seconds: u64,
}

impl Column {
    /// Why this kernel's run failed.
    pub(super) fn problem(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(error.clone());
        }
        let failed: Vec<String> = self
            .rows
            .iter()
            .filter(|row| row.outcome == "failed")
            .map(|row| format!("{}: {}", row.scenario, row.detail))
            .collect();
        (!failed.is_empty()).then(|| failed.join("\n    "))
    }

    fn outcome(&self, scenario: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.scenario == scenario)
    }
}

/// The scenarios in the order of the first kernel that ran them.
fn scenarios(columns: &[Column]) -> Vec<&str> {
    let mut scenarios = Vec::new();
    for row in columns.iter().flat_map(|column| &column.rows) {
        if !scenarios.contains(&row.scenario.as_str()) {
            scenarios.push(&row.scenario);
        }
    }
    scenarios
}

/// The table as aligned text.
pub(super) fn print(columns: &[Column]) -> String {
    let scenarios = scenarios(columns);
    let width = scenarios
        .iter()
        .map(|scenario| scenario.len())
        .max()
        .unwrap_or_default();
    let mut text = format!("\n{:width$}", "scenario");
    for column in columns {
        let _ = write!(text, "  {:8}", column.kernel.name);
    }
    text.push('\n');
    for scenario in &scenarios {
        let _ = write!(text, "{scenario:width$}");
        for column in columns {
            let word = column
                .outcome(scenario)
                .map_or("-", |row| match row.outcome.as_str() {
                    "failed" => "FAILED",
                    other => other,
                });
            let _ = write!(text, "  {word:8}");
        }
        text.push('\n');
    }
    for column in columns {
        let count = |outcome| {
            column
                .rows
                .iter()
                .filter(|row| row.outcome == outcome)
                .count()
        };
        let _ = writeln!(
            text,
            "\n{} is {}: {} ok, {} n/a, {} failed, in {} s",
            column.kernel.name,
            column.release,
            count("ok"),
            count("n/a"),
            count("failed"),
            column.seconds
        );
        for row in column.rows.iter().filter(|row| row.outcome != "ok") {
            let _ = writeln!(text, "  {} {}: {}", row.outcome, row.scenario, row.detail);
        }
    }
    text
}

const FILE: &str = "docs/coverage.md";
const BEGIN: &str = "<!-- table: written by `cargo xtask vm --write` -->\n";
const END: &str = "<!-- end of table -->\n";

/// The table as Markdown. Values that change without us are left out: releases and times.
fn markdown(columns: &[Column]) -> String {
    let mut text = String::from("| scenario |");
    for column in columns {
        let _ = write!(text, " {} |", column.kernel.name);
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(columns.len()));
    text.push('\n');
    let mut reasons: Vec<&str> = Vec::new();
    for scenario in scenarios(columns) {
        let _ = write!(text, "| {scenario} |");
        for column in columns {
            let Some(row) = column.outcome(scenario) else {
                text.push_str(" - |");
                continue;
            };
            if row.outcome != "n/a" {
                let _ = write!(text, " {} |", row.outcome);
                continue;
            }
            let known = reasons.iter().position(|reason| *reason == row.detail);
            let index = known.unwrap_or_else(|| {
                reasons.push(&row.detail);
                reasons.len() - 1
            });
            let _ = write!(text, " n/a ({}) |", index + 1);
        }
        text.push('\n');
    }
    text.push('\n');
    for (index, reason) in reasons.iter().enumerate() {
        let _ = writeln!(text, "{}. {reason}", index + 1);
    }
    text
}

/// Puts the table into docs/coverage.md.
pub(super) fn write(columns: &[Column]) -> Result<()> {
    let text = fs::read_to_string(FILE).context(FILE)?;
    let (before, _, after) = parts(&text)?;
    fs::write(
        FILE,
        format!("{before}{BEGIN}\n{}\n{END}{after}", markdown(columns)),
    )?;
    eprintln!("xtask: wrote {FILE}");
    Ok(())
}

/// Compares the table with docs/coverage.md, except sid's column, which changes without us.
pub(super) fn check(columns: &[Column]) -> Result<()> {
    let text = fs::read_to_string(FILE).context(FILE)?;
    let (_, table, _) = parts(&text)?;
    let ours = markdown(columns);
    let rows = |table: &str| -> Vec<Vec<String>> {
        table
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| {
                let cells: Vec<String> =
                    line.split('|').map(|cell| cell.trim().to_owned()).collect();
                // Two ends, and sid's cell before the last.
                cells[1..cells.len().saturating_sub(2)]
                    .iter()
                    .map(|cell| cell.split(" (").next().unwrap_or_default().to_owned())
                    .collect()
            })
            .collect()
    };
    if rows(table) != rows(&ours) {
        bail!("{FILE} is stale: run `cargo xtask vm --write` and review the difference");
    }
    Ok(())
}

/// The text before, in and after the table.
fn parts(text: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) = text
        .split_once(BEGIN)
        .context("docs/coverage.md has no table")?;
    let (table, after) = rest
        .split_once(END)
        .context("docs/coverage.md has no end of table")?;
    Ok((before, table, after))
}
