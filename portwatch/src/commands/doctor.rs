//! `portwatch doctor`: whether the monitor can work on this host, and, with `--self-test`, proof.

use std::{fmt::Write as _, io, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    conformance::runner::{Monitor, Outcome, Verdict},
    output::{FormatName, StdoutGone},
    sensor::{self, Check},
};

/// Something that the monitor cannot work without is missing.
#[derive(Debug, thiserror::Error)]
#[error("the monitor cannot work here: {}: {}", check.name, check.detail)]
pub struct Unfit {
    check: Check,
}

impl Unfit {
    /// Whether only privileges are missing.
    #[must_use]
    pub fn is_privilege(&self) -> bool {
        self.check.name == sensor::PRIVILEGES
    }
}

/// A path to a port was not seen as it must be.
#[derive(Debug, thiserror::Error)]
#[error("{0} of the paths to a port were not told as they must be")]
pub struct NotCovered(usize);

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    /// None when the self-test was not asked for or could not start.
    paths: Option<Vec<Path>>,
}

/// A path of the self-test.
#[derive(Serialize)]
struct Path {
    #[serde(flatten)]
    verdict: Verdict,
    /// From the kernel's report to the line on stdout, the slowest alert, in microseconds.
    slowest_us: Option<u128>,
}

/// Writes what this host gives the monitor, and what the self-test shows.
///
/// # Errors
///
/// [`Unfit`] when the monitor cannot work here, [`NotCovered`] when the self-test fails.
pub fn doctor(format: FormatName, self_test: bool, out: &mut impl io::Write) -> Result<()> {
    let mut write = |text: &str| out.write_all(text.as_bytes()).map_err(StdoutGone::Io);
    let checks = sensor::probe();
    let unfit = checks
        .iter()
        .find(|check| check.required && !check.ok)
        .map(|check| Unfit {
            check: check.clone(),
        });
    let text = format == FormatName::Text;
    if text {
        write(&describe_checks(&checks)?)?;
    }
    let mut paths = None;
    if self_test && unfit.is_none() {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let monitor = Monitor::start(program).context("starting the monitor")?;
        let mut verdicts = Vec::new();
        let mut result = Ok(());
        if text {
            write("\nself-test: each path to a port, in a network namespace of its own\n")?;
        }
        monitor.run_all(|verdict| {
            if text && result.is_ok() {
                result = write(&describe(&verdict));
            }
            let slowest_us = verdict.slowest.map(|slowest| slowest.as_micros());
            verdicts.push(Path {
                verdict,
                slowest_us,
            });
        });
        result?;
        paths = Some(verdicts);
    }
    let report = Report { checks, paths };
    if !text {
        let mut line = serde_json::to_string(&report).context("writing JSON")?;
        line.push('\n');
        write(&line)?;
    }
    if let Some(unfit) = unfit {
        return Err(unfit.into());
    }
    let failed = report
        .paths
        .iter()
        .flatten()
        .filter(|path| path.verdict.outcome == Outcome::Failed)
        .count();
    if failed > 0 {
        return Err(NotCovered(failed).into());
    }
    Ok(())
}

fn describe_checks(checks: &[Check]) -> Result<String> {
    let mut text = String::new();
    for Check {
        name,
        ok,
        required,
        detail,
    } in checks
    {
        let word = match (ok, required) {
            (true, _) => "ok",
            (false, true) => "MISSING",
            (false, false) => "no",
        };
        writeln!(text, "{name:<30} {word:<8} {detail}")?;
    }
    Ok(text)
}

fn describe(verdict: &Verdict) -> String {
    let Verdict {
        scenario,
        outcome,
        detail,
        slowest,
        ..
    } = verdict;
    let word = match outcome {
        Outcome::Ok => "ok",
        Outcome::Unavailable => "n/a",
        Outcome::Failed => "FAILED",
    };
    let took = slowest
        .map(|slowest| format!("{} us", slowest.as_micros()))
        .unwrap_or_default();
    format!("{scenario:<46} {word:<7} {took:>9} {detail}\n")
}
