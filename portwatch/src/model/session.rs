//! TCP connections on watched ports, from beginning to end.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Which end of a connection is on the watched port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The peer connected to it.
    In,
    /// It connected to the peer.
    Out,
}

impl Direction {
    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndedBy {
    /// This host closed it first.
    Us,
    /// The peer closed it first.
    Peer,
    /// One of them reset it.
    Reset,
    /// The peer did not answer any more.
    Timeout,
}

impl EndedBy {
    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Us => "us",
            Self::Peer => "peer",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
        }
    }
}

/// A connection that ended, or the sums of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Which end is on the watched port.
    pub direction: Direction,
    /// When it was established; None when unknown, and for sums.
    pub opened: Option<Timestamp>,
    /// How many connections ended: one, none where it is only a further path of one, or any number in
    /// a sum.
    pub ended: u64,
    /// Whether it is a sum: the BPF programs counted.
    pub is_sum: bool,
    /// Bytes that were received in order.
    pub bytes_in: u64,
    /// Bytes that the peer acknowledged.
    pub bytes_out: u64,
    /// How it ended; None when unknown, and for sums.
    pub ended_by: Option<EndedBy>,
}

impl Session {
    /// Whether it is the end of one connection.
    #[must_use]
    pub const fn is_one(&self) -> bool {
        !self.is_sum && self.ended == 1
    }

    /// Whether it has carried anything.
    #[must_use]
    pub const fn has_bytes(&self) -> bool {
        self.bytes_in > 0 || self.bytes_out > 0
    }
}

/// The connections of a socket that closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sessions {
    /// How many have ended.
    pub ended: u64,
    /// How many are still open.
    pub open: u64,
    /// Bytes that those that have ended received.
    pub bytes_in: u64,
    /// Bytes that those that have ended sent, as far as the peers acknowledged them.
    pub bytes_out: u64,
}
