//! The limits of the aggregation.

use std::time::Duration;

/// The `[aggregate]` table of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether anything is aggregated.
    pub enabled: bool,
    /// How many alerts of one program, or on one port, are reported one by one.
    pub burst: u32,
    /// How often the events after that are summarized.
    pub interval: Duration,
    /// How long nothing must happen for a burst to be over.
    pub idle_timeout: Duration,
    /// How long a TCP bind waits for the listen or connect that shows what the socket is for.
    pub bind_delay: Duration,
    /// How many alerts a second are written in the long run, `critical` ones aside; 0 for any number.
    pub max_rate: u32,
    /// Whether the end of each connection is reported, and not only summed.
    pub sessions: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            burst: 8,
            interval: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(5),
            bind_delay: Duration::from_millis(1),
            max_rate: 200,
            sessions: false,
        }
    }
}
