//! The commands, one file each: its arguments, and `run(args, out)`, which writes the command's
//! output to `out` and returns the error that becomes the exit code.
#![forbid(unsafe_code)]

use std::io::Write;

use crate::{output::StdoutGone, util::escape_lines};

pub mod args;
pub mod check_config;
pub mod completions;
mod connections;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod explain_alert;
pub mod list;
pub mod man;
mod peers;
pub mod registry;
pub mod run;
pub mod run_scenario;
mod table;
pub mod unpin;

/// An argument that is invalid for a reason that clap cannot check.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Malformed input, with its place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InputError(pub String);

/// Writes a command's output, escaped but for its line ends.
fn write(output: impl AsRef<[u8]>, out: &mut impl Write) -> Result<(), StdoutGone> {
    out.write_all(escape_lines(output).as_bytes())
        .and_then(|()| out.flush())
        .map_err(StdoutGone::Io)
}
