//! Messages to the operator on stderr.

use std::io::{self, Write as _};

/// Writes one line to stderr; a closed stderr is no error.
pub fn log(text: &str) {
    let _ = writeln!(io::stderr(), "portwatch: {text}");
}
