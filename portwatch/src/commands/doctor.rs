//! `portwatch doctor`: whether the monitor can run on this host, and, with `--self-test`, proof.

use std::{fmt::Write as _, io, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::args::{self, ConfigArgs, RegistryArgs};
use crate::{
    config::Overrides,
    conformance::runner::{Monitor, Outcome, Verdict},
    inventory::redirects::{self, RedirectCheck},
    model::Transport,
    output::FormatName,
    sandbox::{self, Finding},
    sensor::{self, Check},
};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: FormatName,
    /// Run the conformance suite on this kernel and compare the alerts
    ///
    /// Binds an unassigned port in every way that this kernel has, in network namespaces of its
    /// own; no socket of this host is touched.
    #[arg(long)]
    self_test: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// The monitor needs something that this host lacks.
#[derive(Debug, thiserror::Error)]
#[error("the monitor cannot run on this host: {}: {}", check.name, check.detail)]
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

/// Scenarios of the self-test failed.
#[derive(Debug, thiserror::Error)]
#[error("{0} scenarios of the self-test failed")]
pub struct SelfTestFailed(usize);

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    /// None without self-test.
    scenarios: Option<Vec<ScenarioResult>>,
}

/// The result of one scenario.
#[derive(Serialize)]
struct ScenarioResult {
    #[serde(flatten)]
    verdict: Verdict,
    /// Microseconds from the kernel's report to the line on stdout, of the slowest alert.
    slowest_us: Option<u128>,
}

/// Writes which kernel features the monitor finds on this host, and the self-test's results.
///
/// # Errors
///
/// [`Unfit`] when the monitor cannot run on this host, [`SelfTestFailed`].
pub fn run(args: Args, out: &mut impl io::Write) -> Result<()> {
    let Args {
        format,
        self_test,
        config,
        registry,
    } = args;
    let config = args::load(&config.source(Overrides::default()))?;
    let registry = registry.read()?;
    let mut write = |text: &str| super::write(text, out);
    let mut checks = sensor::probe();
    let watched = config.watched(&registry, &Transport::ALL).collect();
    let redirects = redirects::check(&watched).into_iter();
    checks.extend(redirects.map(|RedirectCheck { name, result }| check_of(name, result)));
    let sandbox = sandbox::probe().into_iter();
    checks.extend(sandbox.map(|Finding { name, result }| check_of(name, result)));
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
    let mut scenarios = None;
    if self_test && unfit.is_none() {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let monitor = Monitor::start(program).context("starting the monitor")?;
        let mut verdicts = Vec::new();
        let mut result = Ok(());
        if text {
            write("\nself-test: each scenario in a network namespace of its own\n")?;
        }
        monitor.run_all(|verdict| {
            if text && result.is_ok() {
                result = write(&describe(&verdict));
            }
            let slowest_us = verdict.slowest.map(|slowest| slowest.as_micros());
            verdicts.push(ScenarioResult {
                verdict,
                slowest_us,
            });
        });
        result?;
        scenarios = Some(verdicts);
    }
    let report = Report { checks, scenarios };
    if !text {
        let mut line = serde_json::to_string(&report).context("writing JSON")?;
        line.push('\n');
        write(&line)?;
    }
    if let Some(unfit) = unfit {
        return Err(unfit.into());
    }
    let failed = report
        .scenarios
        .iter()
        .flatten()
        .filter(|result| result.verdict.outcome == Outcome::Failed)
        .count();
    if failed > 0 {
        return Err(SelfTestFailed(failed).into());
    }
    Ok(())
}

/// A check that a monitor can do without.
fn check_of(name: &str, result: Result<String, String>) -> Check {
    Check {
        name: name.to_owned(),
        ok: result.is_ok(),
        required: false,
        detail: result.unwrap_or_else(|problem| problem),
    }
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
        let state = match (ok, required) {
            (true, _) => "ok",
            (false, true) => "MISSING",
            (false, false) => "no",
        };
        writeln!(text, "{name:<30} {state:<8} {detail}")?;
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
    let state = match outcome {
        Outcome::Ok => "ok",
        Outcome::Unavailable => "n/a",
        Outcome::Failed => "FAILED",
    };
    let took = slowest
        .map(|slowest| format!("{} us", slowest.as_micros()))
        .unwrap_or_default();
    format!(
        "{scenario:<46} {state:<7} {took:>9} {detail}
"
    )
}
