//! Why a configuration cannot be used.

use std::{fmt, io, ops::Range, path::PathBuf};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system returned.
        source: io::Error,
    },
    /// The file is malformed, or its rules cannot be used.
    #[error("{}:{place}: {problem}\n{cited}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where.
        place: Place,
        /// What is wrong, and often what would be right.
        problem: String,
        /// The line of the file.
        cited: Cited,
    },
}

/// A place in a text file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
}

impl Place {
    /// The place of the byte at `offset` of `text`.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A line of the file with a part of it marked. As text, two lines: the line, and carets under the
/// part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cited {
    line: String,
    column: usize,
    /// Length of the marked part in characters, at least 1.
    marked: usize,
}

impl Cited {
    /// The line in which the bytes `span` of `text` begin.
    pub(super) fn of(text: &str, span: &Range<usize>) -> Self {
        let Place { line, column } = Place::of(text, span.start);
        let line = text.lines().nth(line - 1).unwrap_or("");
        let rest = line.chars().count().saturating_sub(column - 1);
        let marked = text.get(span.clone()).unwrap_or("").chars().count();
        Self {
            // A tab would be wider than the space above the caret, an escape could act on the
            // terminal.
            line: line
                .chars()
                .map(|char| if char.is_control() { ' ' } else { char })
                .collect(),
            column,
            marked: marked.min(rest).max(1),
        }
    }
}

impl fmt::Display for Cited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (indent, carets) = (" ".repeat(self.column - 1), "^".repeat(self.marked));
        write!(f, "  {}\n  {indent}{carets}", self.line)
    }
}
