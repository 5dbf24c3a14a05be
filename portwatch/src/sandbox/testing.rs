//! A door for tests of the filter on the running monitor.

use std::io;

/// Names a forbidden system call that a monitor shall try once it is armed.
const VARIABLE: &str = "PORTWATCH_TEST_CALL";

/// Tries the system call that the environment names, with arguments 0. The result, for people.
#[must_use]
pub fn attempt() -> Option<String> {
    let number: libc::c_long = std::env::var(VARIABLE).ok()?.parse().ok()?;
    // SAFETY: only for tests, which pass numbers of calls for which zeros are no valid arguments.
    let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    let error = io::Error::last_os_error();
    Some(format!("system call {number}: {result} ({error})"))
}
