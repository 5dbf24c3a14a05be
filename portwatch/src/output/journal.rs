//! Lines for the journal: a priority goes before each.
#![forbid(unsafe_code)]

use super::Format;
use crate::{alert::Alert, model::Severity};

/// A format whose lines begin with their priority, which the journal takes off (sd-daemon(3)).
pub(super) struct Journal(pub(super) Box<dyn Format>);

impl Format for Journal {
    fn write(&self, alert: &Alert, line: &mut Vec<u8>) {
        line.extend_from_slice(priority(alert.severity));
        self.0.write(alert, line);
    }
}

/// The level of syslog(3) for a severity.
const fn priority(severity: Severity) -> &'static [u8] {
    match severity {
        Severity::Notice => b"<5>",
        Severity::Warning => b"<4>",
        Severity::Critical => b"<2>",
    }
}
