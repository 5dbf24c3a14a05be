//! Why a configuration cannot be used.

use std::{fmt, ops::Range, path::PathBuf};

use crate::util::{escape_to, input::InputError};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or somebody else can change it.
    #[error(transparent)]
    File(#[from] InputError),
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
        // A part of a long line, around the place.
        let skipped = (column - 1).saturating_sub(MAX_CITED / 2);
        let part = line.chars().skip(skipped).take(MAX_CITED);
        Self {
            // A tab would be wider than the space above the caret, and so would an escape.
            line: part
                .map(|char| if is_plain(char) { char } else { ' ' })
                .collect(),
            column: column - skipped,
            marked: marked.min(rest).clamp(1, MAX_CITED / 2),
        }
    }
}

/// Characters of a line that are cited.
const MAX_CITED: usize = 160;

/// Whether it is printed as itself, wherever it stands.
fn is_plain(character: char) -> bool {
    let mut escaped = String::new();
    escape_to(
        &mut escaped,
        character.encode_utf8(&mut [0; 4]).as_bytes(),
        &[],
    );
    escaped.chars().eq([character])
}

impl fmt::Display for Cited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (indent, carets) = (" ".repeat(self.column - 1), "^".repeat(self.marked));
        write!(f, "  {}\n  {indent}{carets}", self.line)
    }
}
