//! The socket tables of one network namespace: `/proc/PID/net/{tcp,udp,udplite}` and the same for
//! IPv6 (proc_pid_net(5)). They do not contain TCP sockets that are only bound.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    ops::RangeInclusive,
};

use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6};

use super::{SocketEntry, State, wire::LISTEN};
use crate::{linux::address::ip, model::Transport};

const TABLES: [(&str, Transport); 6] = [
    ("tcp", Transport::Tcp),
    ("tcp6", Transport::Tcp),
    ("udp", Transport::Udp),
    ("udp6", Transport::Udp),
    ("udplite", Transport::UdpLite),
    ("udplite6", Transport::UdpLite),
];

/// The sockets on `ports` in the network namespace `netns`, which `pid` is in.
pub(super) fn read(pid: u32, netns: u64, ports: &RangeInclusive<u16>) -> Vec<SocketEntry> {
    let mut sockets = Vec::new();
    for (table, transport) in TABLES {
        each(pid, table, ports, |row| {
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
                is_outgoing: false,
                holders_omitted: 0,
                is_known: false,
                device: None,
                v6only: None,
            });
        });
    }
    sockets
}

/// The TCP sockets on `ports` in the network namespace that `pid` is in.
pub(super) fn read_tcp(pid: u32, ports: &RangeInclusive<u16>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (table, _) in TABLES.iter().filter(|(_, one)| *one == Transport::Tcp) {
        each(pid, table, ports, |row| rows.push(row));
    }
    rows
}

/// Gives the sockets on `ports` to `take` that have an inode.
fn each(pid: u32, table: &str, ports: &RangeInclusive<u16>, mut take: impl FnMut(Row)) {
    // Missing without IPv6 or UDP-Lite, or when the process has ended.
    let Ok(file) = File::open(format!("/proc/{pid}/net/{table}")) else {
        return;
    };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        if let Some(row) =
            parse(&line).filter(|row| ports.contains(&row.local.port()) && row.inode != 0)
        {
            take(row);
        }
    }
}

/// One socket of a table.
pub(super) struct Row {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) state: u8,
    pub(super) inode: u64,
}

/// One line: slot, local, remote, state, and the inode in the tenth column; None for the heading.
fn parse(line: &str) -> Option<Row> {
    let mut columns = line.split_ascii_whitespace();
    let local = address(columns.nth(1)?)?;
    let remote = address(columns.next()?)?;
    let state = u8::from_str_radix(columns.next()?, 16).ok()?;
    let inode = columns.nth(5)?.parse().ok()?;
    Some(Row {
        local,
        remote,
        state,
        inode,
    })
}

/// How many lines are of sockets: for the fuzz targets.
#[cfg(feature = "testing")]
pub fn parse_lines(text: &str) -> usize {
    text.lines().filter_map(parse).count()
}

/// `0100007F:03D0`: the address in 32-bit words, each printed in host byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (hex, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let family = match hex.len() {
        8 => FAMILY_IPV4,
        32 => FAMILY_IPV6,
        _ => return None,
    };
    let mut bytes = [0; 16];
    for (word, digits) in bytes
        .chunks_exact_mut(4)
        .zip(hex.as_bytes().chunks_exact(8))
    {
        let digits = std::str::from_utf8(digits).ok()?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    Some(SocketAddr::new(ip(family, bytes)?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_are_parsed() {
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
