//! `portwatch run-scenario`: one scenario of the conformance suite, for its runner.

use std::io;

use anyhow::Result;

use crate::conformance;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the scenario
    name: String,
}

/// Runs the scenario, which writes its results to stdout itself.
///
/// # Errors
///
/// None: a failure is a result.
#[expect(clippy::unnecessary_wraps, reason = "the contract of every command")]
pub fn run(args: Args, _out: &mut impl io::Write) -> Result<()> {
    conformance::run_scenario(&args.name);
    Ok(())
}
