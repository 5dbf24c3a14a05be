//! Messages to the operator on stderr.

use std::io::{self, Write as _};

use super::escape_lines;

/// Writes a message to stderr, of one line or several, escaped; a closed stderr is no error.
pub fn log(text: &str) {
    // One write, so that messages of two threads do not mix.
    let line = format!("portwatch: {}\n", escape_lines(text));
    let _ = io::stderr().write_all(line.as_bytes());
}
