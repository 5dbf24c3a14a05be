//! One open connection, from a message of sock_diag(7).

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::super::{
    Holder, diag, holders,
    wire::{INFO, Message, TcpInfo},
};
use crate::{linux::address, model::Direction};

/// The state of an open connection (include/net/tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// Neither end has closed it.
    Established,
    /// This host has closed it; its FIN is not acknowledged.
    FinWait1,
    /// This host has closed it; its FIN is acknowledged.
    FinWait2,
    /// The peer has closed it.
    CloseWait,
    /// The peer has closed it, then this host; its FIN is not acknowledged.
    LastAck,
    /// Both have closed it; this host's FIN is not acknowledged.
    Closing,
}

impl TcpState {
    pub(super) const fn new(state: u8) -> Option<Self> {
        Some(match state {
            1 => Self::Established,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            11 => Self::Closing,
            _ => return None,
        })
    }

    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::FinWait1 => "fin-wait-1",
            Self::FinWait2 => "fin-wait-2",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::Closing => "closing",
        }
    }
}

/// What a connection has carried, without SYN and FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that came.
    pub bytes_in: u64,
    /// Bytes that the peer has acknowledged. Of a connection of unknown direction it can be one too many,
    /// its SYN.
    pub bytes_out: u64,
    /// Milliseconds since data was sent or came; since the handshake when none was.
    pub idle_ms: u32,
}

/// An open TCP connection. There can be very many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The local address; an IPv4-mapped one is given as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Who connected; None where the kernel does not show it.
    pub direction: Option<Direction>,
    /// The state.
    pub state: TcpState,
    /// None where only `/proc/PID/net` could be read.
    pub traffic: Option<Traffic>,
    /// The socket cookie; None where only `/proc/PID/net` could be read.
    pub cookie: Option<u64>,
    /// The inode in the socket file system; 0 where no process has it open: it waits for accept(2), or
    /// was closed and has data to deliver.
    pub inode: u64,
    /// Inode of the network namespace.
    pub netns: u64,
    /// The user that created the socket, as far as it is open.
    pub uid: Option<u32>,
    /// The index of the device that it is bound to; 0 for none.
    pub interface: u32,
    /// The first process that has it open, of those that this user may see.
    pub holder: Option<Holder>,
    /// How many have it open.
    pub holders: u32,
}

/// Where connections can be accepted in one namespace: port, address and the device's index.
#[derive(Default)]
pub(in crate::inventory) struct Listeners(HashSet<(u16, IpAddr, u32)>);

impl Listeners {
    pub(super) fn add(&mut self, port: u16, ip: IpAddr, v6only: bool, interface: u32) {
        self.0.insert((port, ip, interface));
        if ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !v6only {
            self.0
                .insert((port, Ipv4Addr::UNSPECIFIED.into(), interface));
        }
    }

    /// Whether one can accept a connection to `local`. What a listener on a device accepts is bound to
    /// the same (`inet_request_bound_dev_if` in include/net/inet_sock.h).
    fn can_accept(&self, local: SocketAddr, interface: u32) -> bool {
        let any: IpAddr = match local.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        [local.ip(), any].into_iter().any(|ip| {
            let has = |interface| self.0.contains(&(local.port(), ip, interface));
            has(0) || has(interface)
        })
    }
}

impl Connection {
    /// None for what is not an open connection. `is_bound`: the socket was bound to its port.
    pub(in crate::inventory) fn decode(
        message: &Message,
        attributes: &[u8],
        netns: u64,
        is_bound: bool,
        listeners: &Listeners,
    ) -> Option<Self> {
        let address = |bytes: [u8; 16], port: [u8; 2]| {
            let ip = address::ip(message.family, bytes)?;
            Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
        };
        let state = TcpState::new(message.state)?;
        let local = address(message.id.local, message.id.local_port)?;
        let interface = message.id.interface;
        let info = diag::attribute(attributes, INFO)
            .and_then(|value| value.get(..size_of::<TcpInfo>()))
            .map(bytemuck::pod_read_unaligned::<TcpInfo>);
        // An acknowledged SYN is counted on the side that sent it. Nothing else is acknowledged without
        // having been sent, so more shows that this side connected, without a bind.
        let has_connected = info.is_some_and(|info| acked(&info, state) > info.bytes_sent);
        let direction = if is_bound {
            Some(Direction::Out)
        } else if listeners.can_accept(local, interface) && !has_connected {
            Some(Direction::In)
        } else {
            None
        };
        let [low, high] = message.id.cookie;
        Some(Self {
            local,
            peer: address(message.id.remote, message.id.remote_port)?,
            direction,
            state,
            traffic: info.map(|info| traffic(&info, state, direction)),
            cookie: Some(u64::from(high) << 32 | u64::from(low)),
            inode: message.inode.into(),
            netns,
            uid: (message.inode != 0).then_some(message.uid),
            interface,
            holder: None,
            holders: 0,
        })
    }

    /// Whether its [`holder`](Self::holder) still has it open.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let holder = self.holder;
        holder.is_some_and(|holder| holders::has_open(holder, self.inode))
    }
}

/// What the peer has acknowledged, without this host's FIN.
fn acked(info: &TcpInfo, state: TcpState) -> u64 {
    let fin = u64::from(state == TcpState::FinWait2);
    info.bytes_acked.saturating_sub(fin)
}

/// The counters without SYN and FIN, which portwatch-ebpf/src/sessions.rs explains.
fn traffic(info: &TcpInfo, state: TcpState, direction: Option<Direction>) -> Traffic {
    let has_peer_fin = matches!(
        state,
        TcpState::CloseWait | TcpState::LastAck | TcpState::Closing
    );
    let acked = acked(info, state);
    Traffic {
        bytes_in: info.bytes_received.saturating_sub(has_peer_fin.into()),
        bytes_out: match direction {
            Some(Direction::In) => acked,
            Some(Direction::Out) => acked.saturating_sub(1),
            // Exact where all that was sent has arrived and nothing was repeated.
            None => acked.min(info.bytes_sent),
        },
        idle_ms: info.last_data_sent.min(info.last_data_received),
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    #[test]
    fn the_counters_are_corrected_for_syn_and_fin() {
        use Direction::{In, Out};
        use TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck};
        // Received, acknowledged and sent as the kernel counts them; bytes in and out.
        for (state, direction, counted, expected) in [
            (Established, Some(In), (10, 20, 20), (10, 20)),
            (Established, Some(Out), (10, 21, 20), (10, 20)),
            (Established, None, (10, 21, 20), (10, 20)),
            (Established, None, (10, 20, 25), (10, 20)),
            (FinWait1, Some(In), (10, 20, 20), (10, 20)),
            (FinWait2, Some(In), (10, 21, 20), (10, 20)),
            (FinWait2, Some(Out), (10, 22, 20), (10, 20)),
            (CloseWait, Some(In), (11, 20, 20), (10, 20)),
            (LastAck, Some(Out), (11, 21, 20), (10, 20)),
            (Closing, Some(In), (11, 20, 20), (10, 20)),
            (Established, Some(Out), (0, 0, 0), (0, 0)),
        ] {
            let (bytes_received, bytes_acked, bytes_sent) = counted;
            let mut info = TcpInfo::zeroed();
            (info.bytes_received, info.bytes_acked) = (bytes_received, bytes_acked);
            info.bytes_sent = bytes_sent;
            let traffic = traffic(&info, state, direction);
            let bytes = (traffic.bytes_in, traffic.bytes_out);
            assert_eq!(bytes, expected, "{state:?} {direction:?}");
        }
    }

    #[test]
    fn listeners_accept_by_address_family_and_device() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (listener, v6only, interface, local, on, expected) in [
            ("0.0.0.0", false, 0, "10.0.0.1", 0, true),
            ("0.0.0.0", false, 0, "::1", 0, false),
            ("::", false, 0, "10.0.0.1", 0, true),
            ("::", true, 0, "10.0.0.1", 0, false),
            ("::", true, 0, "fe80::1", 3, true),
            ("10.0.0.1", false, 0, "10.0.0.1", 0, true),
            ("10.0.0.2", false, 0, "10.0.0.1", 0, false),
            ("0.0.0.0", false, 3, "10.0.0.1", 3, true),
            ("0.0.0.0", false, 3, "10.0.0.1", 4, false),
            ("0.0.0.0", false, 3, "10.0.0.1", 0, false),
        ] {
            let mut listeners = Listeners::default();
            listeners.add(976, ip(listener), v6only, interface);
            let accepts = |port| listeners.can_accept(SocketAddr::new(ip(local), port), on);
            assert_eq!(accepts(976), expected, "{listener} {local}");
            assert!(!accepts(977));
        }
    }
}
