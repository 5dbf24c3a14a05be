//! `portwatch man`: the manual pages of the commands, for packages.

use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, Result};
use clap_mangen::Man;

/// The section of commands for the administrator.
const SECTION: &str = "8";

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory to write them to
    directory: PathBuf,
}

/// Writes a page for `command`, the whole command line, and one for each of its commands.
///
/// # Errors
///
/// When a page cannot be written.
pub fn run(args: &Args, command: clap::Command) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    for one in [&command].into_iter().chain(shown) {
        let name = one.get_display_name().unwrap_or(one.get_name());
        let path = args.directory.join(format!("{name}.{SECTION}"));
        page(one.clone(), &name.to_uppercase())
            .and_then(|page| fs::write(&path, page))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn page(command: clap::Command, title: &str) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command)
        .title(title)
        .section(SECTION)
        .manual("portwatch")
        .render(&mut page)?;
    Ok(page)
}
