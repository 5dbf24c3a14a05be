//! Messages to the operator on stderr.

use std::{
    env,
    io::{self, Write as _},
    os::fd::{AsFd as _, BorrowedFd},
};

use rustix::fs::fstat;

use super::escape_lines;

/// The level of an error in syslog(3), as the journal reads it (sd-daemon(3)).
const ERROR: &str = "<3>";

/// Writes a message to stderr, of one line or several, escaped; a closed stderr is no error.
pub fn log(text: &str) {
    write("", text);
}

/// As [`log`]; in the journal it is an error.
pub fn error(text: &str) {
    let priority = match is_journal(io::stderr().as_fd()) {
        true => ERROR,
        false => "",
    };
    write(priority, text);
}

/// Whether the descriptor is the journal's stream, as `$JOURNAL_STREAM` says (systemd.exec(5)).
#[must_use]
pub fn is_journal(fd: BorrowedFd<'_>) -> bool {
    let expected = env::var("JOURNAL_STREAM");
    expected.is_ok_and(|expected| {
        fstat(fd).is_ok_and(|found| format!("{}:{}", found.st_dev, found.st_ino) == expected)
    })
}

fn write(priority: &str, text: &str) {
    // One write, so that messages of two threads do not mix.
    let line = format!("{priority}portwatch: {}\n", escape_lines(text));
    let _ = io::stderr().write_all(line.as_bytes());
}
