//! A connection that ended, in an alert.
#![forbid(unsafe_code)]

use jiff::Timestamp;
use serde::Serialize;

use super::maybe_nanoseconds;
use crate::model::{Direction, EndedBy, Session};

/// A connection that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SessionInfo {
    /// Which end is on the port.
    pub direction: Direction,
    /// When it was established; None when unknown.
    #[serde(serialize_with = "maybe_nanoseconds")]
    pub opened: Option<Timestamp>,
    /// How long it lasted; None when unknown.
    pub duration_ms: Option<u64>,
    /// Bytes that were received in order.
    pub bytes_in: u64,
    /// Bytes that the peer acknowledged.
    pub bytes_out: u64,
    /// How it ended; None when unknown.
    pub ended_by: Option<EndedBy>,
}

impl SessionInfo {
    pub(super) fn of(session: &Session, ended: Timestamp) -> Self {
        let duration = session.opened.map(|opened| ended.duration_since(opened));
        Self {
            direction: session.direction,
            opened: session.opened,
            duration_ms: duration.and_then(|it| u64::try_from(it.as_millis()).ok()),
            bytes_in: session.bytes_in,
            bytes_out: session.bytes_out,
            ended_by: session.ended_by,
        }
    }
}
