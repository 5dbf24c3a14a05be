//! The records and sums of connections that ended.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use bytemuck::Zeroable as _;
use jiff::Timestamp;
use portwatch_common::{RepeatKey, SessionEnd, end, kind, session_flags};

use super::decode::Clock;
use crate::{
    linux::address,
    model::{CloseKind, Direction, EndedBy, Event, EventKind, Session, SocketKey, Transport},
};

/// The event of a connection's end.
pub(super) fn session_end(end: &SessionEnd, clock: Clock) -> Option<Event> {
    let address = |words: [u32; 4]| address::ip(end.family, bytemuck::cast(words));
    let is_outgoing = end.flags & session_flags::OUTGOING != 0;
    let is_joined = end.flags & session_flags::JOINED != 0;
    Some(Event {
        kind: EventKind::Session,
        time: clock.time(end.time_ns),
        key: (end.cookie != 0).then_some(SocketKey::Cookie(end.cookie)),
        netns_cookie: (end.netns_cookie != 0).then_some(end.netns_cookie),
        netns: None,
        transport: Transport::Tcp,
        address: Some(address(end.local_address)?),
        port: end.local_port,
        peer: Some(SocketAddr::new(
            address(end.remote_address)?,
            end.remote_port,
        )),
        task: None,
        is_kernel_socket: None,
        binder: None,
        outcome: None,
        accepted: (end.cookie == 0).then_some(end.own),
        close: CloseKind::Released,
        is_from_host: false,
        direction: None,
        session: Some(Session {
            direction: if is_outgoing {
                Direction::Out
            } else {
                Direction::In
            },
            opened: (end.opened_ns != 0).then(|| clock.time(end.opened_ns)),
            ended: u64::from(!is_joined),
            is_sum: false,
            bytes_in: end.bytes_in,
            bytes_out: end.bytes_out,
            ended_by: match end.end {
                end::BY_US => Some(EndedBy::Us),
                end::BY_PEER => Some(EndedBy::Peer),
                end::RESET => Some(EndedBy::Reset),
                end::TIMEOUT => Some(EndedBy::Timeout),
                _ => None,
            },
        }),
        interface: None,
        device: None,
        v6only: None,
    })
}

/// A part of the sums of a listener's connections: `count` is of what the key's kind says.
pub(super) fn session_sum(key: &RepeatKey, count: u64, time: Timestamp) -> Option<Event> {
    let (ended, bytes_in, bytes_out) = match key.kind {
        kind::SESSION => (count, 0, 0),
        kind::SESSION_IN => (0, count, 0),
        kind::SESSION_OUT => (0, 0, count),
        _ => return None,
    };
    let end = SessionEnd {
        cookie: key.cookie,
        netns_cookie: key.netns_cookie,
        local_address: key.local_address,
        local_port: key.local_port,
        family: key.family,
        flags: key.session as u8,
        bytes_in,
        bytes_out,
        ..SessionEnd::zeroed()
    };
    let event = session_end(&end, Clock(0))?;
    Some(Event {
        time,
        peer: None,
        accepted: None,
        binder: (key.binder != 0).then_some(key.binder),
        session: event.session.map(|session| Session {
            ended,
            is_sum: true,
            ..session
        }),
        ..event
    })
}

#[cfg(test)]
mod tests {
    use portwatch_common::{FAMILY_IPV4, PROTOCOL_TCP};

    use super::{
        super::decode::{Decoder, repeat},
        *,
    };

    fn wire_session() -> SessionEnd {
        SessionEnd {
            time_ns: 3_000_000_005,
            opened_ns: 5,
            cookie: 8193,
            own: 9000,
            netns_cookie: 1,
            bytes_in: 200,
            bytes_out: 9000,
            local_address: bytemuck::cast([127_u8, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            remote_address: bytemuck::cast([10_u8, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            local_port: 976,
            remote_port: 40_000,
            family: FAMILY_IPV4,
            end: end::BY_PEER,
            flags: 0,
            reserved: 0,
        }
    }

    #[test]
    fn the_end_of_a_connection_becomes_an_event() {
        let clock = Clock(1_000_000_000);
        let decode = |end: &SessionEnd| Decoder::new().decode(bytemuck::bytes_of(end), clock);
        let event = decode(&wire_session()).unwrap();
        assert_eq!(event.kind, EventKind::Session);
        assert_eq!(event.key, Some(SocketKey::Cookie(8193)));
        assert_eq!((event.netns_cookie, event.port), (Some(1), 976));
        assert_eq!(event.peer, Some("10.0.0.9:40000".parse().unwrap()));
        let expected = Session {
            direction: Direction::In,
            opened: Some(Timestamp::from_nanosecond(1_000_000_005).unwrap()),
            ended: 1,
            is_sum: false,
            bytes_in: 200,
            bytes_out: 9000,
            ended_by: Some(EndedBy::Peer),
        };
        assert_eq!(event.session, Some(expected));

        let unknown = SessionEnd {
            cookie: 0,
            opened_ns: 0,
            end: end::UNKNOWN,
            flags: session_flags::OUTGOING | session_flags::JOINED,
            ..wire_session()
        };
        let event = decode(&unknown).unwrap();
        assert_eq!((event.key, event.accepted), (None, Some(9000)));
        let session = event.session.unwrap();
        assert_eq!((session.direction, session.ended), (Direction::Out, 0));
        assert_eq!((session.opened, session.ended_by), (None, None));
        let broken = SessionEnd {
            family: 1,
            ..wire_session()
        };
        assert_eq!(decode(&broken), None);
    }

    #[test]
    fn the_sums_of_connections_are_taken_once_whatever_their_count() {
        let time = Timestamp::UNIX_EPOCH;
        for (kind, expected) in [
            (kind::SESSION, (7, 0, 0)),
            (kind::SESSION_IN, (0, 7, 0)),
            (kind::SESSION_OUT, (0, 0, 7)),
        ] {
            let key = RepeatKey {
                cookie: 8193,
                family: FAMILY_IPV4,
                protocol: PROTOCOL_TCP,
                local_port: 976,
                kind,
                ..RepeatKey::zeroed()
            };
            let (event, times) = repeat(&key, 7, time).unwrap();
            let session = event.session.unwrap();
            let sums = (session.ended, session.bytes_in, session.bytes_out);
            assert_eq!((times, sums), (1, expected));
            assert!(session.is_sum && !session.is_one());
            assert_eq!(event.key, Some(SocketKey::Cookie(8193)));
        }
    }
}
