//! Transport protocols.

use portwatch_common::{
    PROTOCOL_DCCP, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_UDPLITE,
};
use serde::{Deserialize, Serialize};

/// A transport protocol with ports. MPTCP is [`Tcp`](Self::Tcp).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP and MPTCP.
    Tcp,
    /// UDP.
    Udp,
    /// UDP-Lite (RFC 3828).
    UdpLite,
    /// SCTP.
    Sctp,
    /// DCCP.
    Dccp,
}

impl Transport {
    /// Every transport, in display order.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::UdpLite, Self::Sctp, Self::Dccp];

    /// The name in output and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::UdpLite => "udplite",
            Self::Sctp => "sctp",
            Self::Dccp => "dccp",
        }
    }

    /// The transport with that [`name`](Self::name), ignoring case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|transport| transport.name().eq_ignore_ascii_case(name))
    }

    /// The IP protocol number.
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => PROTOCOL_TCP,
            Self::Udp => PROTOCOL_UDP,
            Self::UdpLite => PROTOCOL_UDPLITE,
            Self::Sctp => PROTOCOL_SCTP,
            Self::Dccp => PROTOCOL_DCCP,
        }
    }

    /// The transport with that IP protocol number.
    #[must_use]
    pub fn from_protocol(protocol: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|transport| transport.protocol() == protocol)
    }

    /// Whether sockets of this transport receive from their bind on, without listen(2).
    #[must_use]
    pub const fn is_datagram(self) -> bool {
        matches!(self, Self::Udp | Self::UdpLite)
    }
}
