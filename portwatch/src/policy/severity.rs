//! How much an event matters without any rule.

use crate::model::{EventKind, Severity, Transport};

/// How much an event matters. `first_from_elsewhere`: an accept, the first on its socket from an
/// address that is not this host's.
#[must_use]
pub const fn severity(
    event: EventKind,
    transport: Transport,
    first_from_elsewhere: bool,
) -> Severity {
    match event {
        EventKind::Bind => match transport {
            Transport::Tcp | Transport::Sctp | Transport::Dccp => Severity::Notice,
            // It receives from here on.
            Transport::Udp | Transport::UdpLite => Severity::Warning,
        },
        EventKind::Accept if first_from_elsewhere => Severity::Critical,
        EventKind::Listen
        | EventKind::Accept
        | EventKind::Deny
        | EventKind::Loss
        | EventKind::Health
        | EventKind::Summary => Severity::Warning,
        EventKind::Connect | EventKind::Close => Severity::Notice,
    }
}
