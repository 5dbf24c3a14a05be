//! The table of paths and kernels: on the terminal, and in docs/coverage.md.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, bail};

use super::kernels::Kernel;

/// What became of one path on one kernel.
pub(super) struct Row {
    pub(super) path: String,
    /// `ok`, `n/a` or `failed`.
    pub(super) outcome: String,
    pub(super) detail: String,
}

/// What became of all paths on one kernel.
pub(super) struct Column {
    pub(super) kernel: &'static Kernel,
    pub(super) release: String,
    pub(super) rows: Vec<Row>,
    /// Why the guest did not come to its end.
    pub(super) error: Option<String>,
    pub(super) seconds: u64,
}

impl Column {
    /// What is wrong with this kernel's run.
    pub(super) fn problem(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(error.clone());
        }
        let failed: Vec<String> = self
            .rows
            .iter()
            .filter(|row| row.outcome == "failed")
            .map(|row| format!("{}: {}", row.path, row.detail))
            .collect();
        (!failed.is_empty()).then(|| failed.join("\n    "))
    }

    fn outcome(&self, path: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.path == path)
    }
}

/// The paths in the order of the first kernel that told them.
fn paths(columns: &[Column]) -> Vec<&str> {
    let mut paths = Vec::new();
    for row in columns.iter().flat_map(|column| &column.rows) {
        if !paths.contains(&row.path.as_str()) {
            paths.push(&row.path);
        }
    }
    paths
}

/// The table as aligned text.
pub(super) fn print(columns: &[Column]) -> String {
    let paths = paths(columns);
    let width = paths
        .iter()
        .map(|path| path.len())
        .max()
        .unwrap_or_default();
    let mut text = format!("\n{:width$}", "path");
    for column in columns {
        let _ = write!(text, "  {:8}", column.kernel.name);
    }
    text.push('\n');
    for path in &paths {
        let _ = write!(text, "{path:width$}");
        for column in columns {
            let word = column
                .outcome(path)
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
            let _ = writeln!(text, "  {} {}: {}", row.outcome, row.path, row.detail);
        }
    }
    text
}

const FILE: &str = "docs/coverage.md";
const BEGIN: &str = "<!-- table: written by `cargo xtask vm --write` -->\n";
const END: &str = "<!-- end of table -->\n";

/// The table as Markdown. What can change without us stays out: releases, times and sid's words.
fn markdown(columns: &[Column]) -> String {
    let mut text = String::from("| path |");
    for column in columns {
        let _ = write!(text, " {} |", column.kernel.name);
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(columns.len()));
    text.push('\n');
    let mut reasons: Vec<&str> = Vec::new();
    for path in paths(columns) {
        let _ = write!(text, "| {path} |");
        for column in columns {
            let Some(row) = column.outcome(path) else {
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

/// Compares the table with docs/coverage.md, but for sid's column, which changes without us.
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
        bail!("{FILE} is stale: run `cargo xtask vm --write` and look at the difference");
    }
    Ok(())
}

/// What stands before, in and behind the table.
fn parts(text: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) = text
        .split_once(BEGIN)
        .context("docs/coverage.md has no table")?;
    let (table, after) = rest
        .split_once(END)
        .context("docs/coverage.md has no end of table")?;
    Ok((before, table, after))
}
