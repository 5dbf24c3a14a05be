//! `portwatch registry`: the registry's date and counts, or its difference from a newer one.

use std::{fmt::Write as _, io, path::PathBuf};

use anyhow::Result;

use super::UsageError;
use super::{args::RegistryArgs, write};
use crate::{
    model::Transport,
    registry::{self, Registry, Status},
};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show what this newer IANA CSV would change
    #[arg(long, value_name = "FILE")]
    diff: Option<PathBuf>,
    /// Print the compact table that the source tree embeds
    #[arg(long, conflicts_with = "diff", hide = true)]
    table: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Writes the counts, the differences or the table.
///
/// # Errors
///
/// [`registry::ReadError`]; [`UsageError`] when the table would have no date.
pub fn run(args: Args, out: &mut impl io::Write) -> Result<()> {
    let registry = args.registry.read()?;
    let text = if args.table {
        if registry.as_of().is_none() {
            return Err(UsageError("the file has no date: give --registry-as-of".into()).into());
        }
        registry::to_table(&registry)
    } else if let Some(path) = args.diff {
        diff(&registry, &Registry::from_csv(&path, None)?)?
    } else {
        counts(&registry)?
    };
    Ok(write(&text, out)?)
}

fn date(registry: &Registry) -> String {
    registry
        .as_of()
        .map_or_else(|| "unknown date".into(), |date| date.to_string())
}

fn diff(registry: &Registry, newer: &Registry) -> Result<String> {
    let mut text = String::new();
    let changes = registry::diff(registry, newer);
    for change in &changes {
        writeln!(text, "{change}")?;
    }
    writeln!(
        text,
        "{} changes from {} to {}",
        changes.len(),
        date(registry),
        date(newer)
    )?;
    Ok(text)
}

fn counts(registry: &Registry) -> Result<String> {
    let mut text = format!(
        "IANA's port registry as of {}, ports 0-1023\n",
        date(registry)
    );
    write!(text, "{:<10}", "transport")?;
    for status in Status::ALL {
        write!(text, " {:>12}", status.name())?;
    }
    writeln!(text)?;
    for transport in Transport::ALL {
        write!(text, "{:<10}", transport.name())?;
        for count in registry.counts(transport) {
            write!(text, " {count:>12}")?;
        }
        writeln!(text)?;
    }
    Ok(text)
}
