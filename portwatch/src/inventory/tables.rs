//! The socket tables of one network namespace: `/proc/PID/net/{tcp,udp,udplite}` and their IPv6
//! twins (proc_pid_net(5)). A TCP socket that is bound and does nothing else is in none of them.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use super::{SocketEntry, State};
use crate::model::Transport;

const TABLES: [(&str, Transport); 6] = [
    ("tcp", Transport::Tcp),
    ("tcp6", Transport::Tcp),
    ("udp", Transport::Udp),
    ("udp6", Transport::Udp),
    ("udplite", Transport::UdpLite),
    ("udplite6", Transport::UdpLite),
];

/// `TCP_LISTEN` in include/net/tcp_states.h.
const LISTEN: u8 = 10;

/// The sockets on `ports` in the network namespace `netns`, which `pid` is in.
pub(super) fn read(pid: u32, netns: u64, ports: &RangeInclusive<u16>) -> Vec<SocketEntry> {
    let mut sockets = Vec::new();
    for (table, transport) in TABLES {
        // A kernel without IPv6 or UDP-Lite has no such table; a process can have gone.
        let Ok(file) = File::open(format!("/proc/{pid}/net/{table}")) else {
            continue;
        };
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            let Some(row) =
                parse(&line).filter(|row| ports.contains(&row.local.port()) && row.inode != 0)
            else {
                continue;
            };
            let state = match (transport, row.state) {
                (Transport::Tcp, LISTEN) => State::Listening,
                _ if row.remote.port() == 0 => State::Bound,
                _ => State::Connected(row.remote),
            };
            let (local, inode) = (row.local, row.inode);
            sockets.push(SocketEntry {
                transport,
                local,
                state,
                cookie: None,
                inode,
                netns,
                cgroup: None,
                holders: Vec::new(),
            });
        }
    }
    sockets
}

struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    inode: u64,
}

/// One line: slot, local, remote, state, and the inode as the tenth word; None for the title.
fn parse(line: &str) -> Option<Row> {
    let mut words = line.split_ascii_whitespace();
    let local = address(words.nth(1)?)?;
    let remote = address(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let inode = words.nth(5)?.parse().ok()?;
    Some(Row {
        local,
        remote,
        state,
        inode,
    })
}

/// `0100007F:03D0`: 32-bit words of the address, each printed in the host's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (hex, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| -> Option<[u8; 4]> {
        let digits = hex.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match hex.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_tables_are_read() {
        let v4 = "   0: 0100007F:03D0 00000000:0000 0A 00000000:00000000 00:00000000 00000000  \
                  1000        0 30519 1 0000000000000000 100 0 0 10 0";
        let row = parse(v4).unwrap();
        assert_eq!(
            (row.local.to_string().as_str(), row.state),
            ("127.0.0.1:976", LISTEN)
        );
        assert_eq!((row.inode, row.remote.port()), (30_519, 0));
        let v6 = "  12: 0000000000000000FFFF00000100000A:03D0 \
                  0000000000000000FFFF00000900000A:9CB0 01 00000000:00000000 00:00000000 00000000 \
                  0 0 7 1 0";
        let row = parse(v6).unwrap();
        assert_eq!(row.local.to_string(), "10.0.0.1:976");
        assert_eq!(row.remote.to_string(), "10.0.0.9:40112");
        assert!(parse("  sl  local_address rem_address   st tx_queue rx_queue").is_none());
    }
}
