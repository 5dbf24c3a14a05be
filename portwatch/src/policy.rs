//! What is worth an alert, and how much it matters.

use crate::{
    alert::Severity,
    event::{EventKind, Transport},
    registry::{Registry, Status, system_ports},
};

/// What alerts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Assigned ports too.
    pub all: bool,
}

impl Policy {
    /// The (port, transport) pairs that are watched. Port 0 is never one that a socket has.
    pub fn watched<'a>(
        self,
        registry: &'a Registry,
        transports: &'a [Transport],
    ) -> impl Iterator<Item = (u16, Transport)> + 'a {
        system_ports()
            .skip(1)
            .flat_map(|port| transports.iter().map(move |transport| (port, *transport)))
            .filter(move |(port, transport)| {
                registry
                    .verdict(*port, *transport)
                    .is_some_and(|verdict| self.all || verdict.status != Status::Assigned)
            })
    }
}

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
        EventKind::Listen | EventKind::Accept | EventKind::Loss | EventKind::Health => {
            Severity::Warning
        }
        EventKind::Connect | EventKind::Close => Severity::Notice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_assigned_is_watched_and_all_adds_the_rest() {
        let registry = Registry::embedded().unwrap();
        let watched = |all| {
            Policy { all }
                .watched(&registry, &Transport::ALL[..3])
                .collect::<Vec<_>>()
        };
        let quiet = watched(false);
        for (pair, expected) in [
            ((976, Transport::Tcp), true),
            ((976, Transport::UdpLite), true),
            ((22, Transport::Tcp), false),
            ((143, Transport::Tcp), false),
            ((143, Transport::Udp), true),
            ((716, Transport::Tcp), true),
            ((585, Transport::Tcp), true),
            ((0, Transport::Tcp), false),
        ] {
            assert_eq!(quiet.contains(&pair), expected, "{pair:?}");
        }
        assert_eq!(watched(true).len(), 3 * 1023);
    }
}
