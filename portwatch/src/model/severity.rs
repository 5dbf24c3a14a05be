//! How much an alert matters.

use serde::Serialize;

/// How much an alert matters, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A socket holds the port but does not receive, or left it.
    Notice,
    /// A socket can receive on the port.
    Warning,
    /// A remote host connected to the port.
    Critical,
}

impl Severity {
    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}
