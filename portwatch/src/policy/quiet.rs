//! How much is told of what happens often.

use std::time::Duration;

/// The numbers of the collapse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// Whether anything is collapsed.
    pub enabled: bool,
    /// Alerts of one program, or on one port, that are told one by one.
    pub burst: u32,
    /// How often those after that are summed up.
    pub interval: Duration,
    /// How long nothing must happen for a burst to be over.
    pub pause: Duration,
    /// How long a TCP bind waits for what the socket turns out to be.
    pub hold: Duration,
}

impl Default for Quiet {
    fn default() -> Self {
        Self {
            enabled: true,
            burst: 8,
            interval: Duration::from_secs(60),
            pause: Duration::from_secs(5),
            hold: Duration::from_millis(1),
        }
    }
}
