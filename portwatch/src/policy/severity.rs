//! Severity without a rule.

use crate::model::{EventKind, Severity, Transport};

/// The severity of an event that no rule matches. `first_remote`: an accept or receive, the first
/// on its socket from an address that is not this host's.
#[must_use]
pub const fn default_severity(
    event: EventKind,
    transport: Transport,
    first_remote: bool,
) -> Severity {
    match event {
        EventKind::Bind => match transport {
            Transport::Tcp | Transport::Sctp | Transport::Dccp => Severity::Notice,
            // It receives from its bind on.
            Transport::Udp | Transport::UdpLite => Severity::Warning,
        },
        EventKind::Accept | EventKind::Receive if first_remote => Severity::Critical,
        EventKind::Listen
        | EventKind::Accept
        | EventKind::Receive
        | EventKind::Deny
        | EventKind::Loss
        | EventKind::Health
        | EventKind::Summary => Severity::Warning,
        EventKind::Connect | EventKind::Close | EventKind::Handover | EventKind::Session => {
            Severity::Notice
        }
    }
}
