//! `portwatch unpin`: ends what `run --fail-closed` left in place.

use std::io;

use anyhow::Result;

use crate::{sensor, util::console};

/// Its arguments: none.
#[derive(Debug, clap::Args)]
pub struct Args;

/// Removes the pinned BPF programs.
///
/// # Errors
///
/// [`sensor::SensorError`].
pub fn run(_args: Args, _out: &mut impl io::Write) -> Result<()> {
    if !sensor::unpin()? {
        console::log("nothing is pinned");
    }
    Ok(())
}
