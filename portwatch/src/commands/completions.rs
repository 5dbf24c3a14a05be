//! `portwatch completions`: a shell's completion script.

use std::io;

use anyhow::Result;
use clap_complete::{Shell, generate};

use crate::output::StdoutGone;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script for `command`, the whole command line.
///
/// # Errors
///
/// When stdout is closed or full.
pub fn run(args: &Args, mut command: clap::Command, out: &mut impl io::Write) -> Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(args.shell, &mut command, name, &mut script);
    out.write_all(&script)
        .and_then(|()| out.flush())
        .map_err(StdoutGone::Io)?;
    Ok(())
}
