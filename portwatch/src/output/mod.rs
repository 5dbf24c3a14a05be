//! Formats, and the sinks that alerts go to: one line each, at once.

mod color;
mod journal;
mod json;
mod sinks;
mod stdout;
mod text;

use clap::ValueEnum;

pub use self::{
    color::ColorChoice,
    sinks::{Sink, Sinks},
    stdout::{Stdout, StdoutGone},
};
use self::{journal::Journal, json::Json, text::Text};
use crate::alert::Alert;

/// Bytes of a line, newline included, whatever the alert: log collectors split longer ones
/// (Docker's at 16 KiB). The limits of what is in an alert keep it.
#[cfg(test)]
pub const MAX_LINE: usize = 16 << 10;

/// A format in which alerts are written.
pub trait Format {
    /// Appends the alert and a newline to `line`; neither the alert's text nor anything else in
    /// it can hold another newline. At most 16 KiB.
    fn write(&self, alert: &Alert, line: &mut Vec<u8>);
}

/// The formats that `--format` knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// One readable line per alert, coloured on a terminal
    #[default]
    Text,
    /// One JSON object per line; docs/alert.schema.json describes it
    Json,
}

impl FormatName {
    /// The format of that name. `colour` is for a terminal.
    #[must_use]
    pub fn format(self, colour: bool) -> Box<dyn Format> {
        match self {
            Self::Text => Box::new(Text { colour }),
            Self::Json => Box::new(Json),
        }
    }

    /// The format of that name for the journal: each line has its priority.
    #[must_use]
    pub fn for_journal(self) -> Box<dyn Format> {
        Box::new(Journal(self.format(false)))
    }
}

#[cfg(test)]
mod tests;
