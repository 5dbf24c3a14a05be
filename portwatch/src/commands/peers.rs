//! `portwatch explain`: the peers that have connections open on a port.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::table::Widths;
use crate::{
    inventory::peers::{self, MAX_PEERS, Peer, Peers, Sums},
    util::{parallel, quote},
};

/// Peers that are shown.
const SHOWN: usize = 20;

/// The peers of the connections on the port; `here` is the caller's network namespace.
///
/// # Errors
///
/// When /proc cannot be read.
pub(super) fn describe(port: u16, here: Option<u64>) -> Result<String> {
    let peers = peers::read(port..=port, parallel::threads()).context("reading /proc")?;
    Ok(text(&peers, here)?)
}

fn text(peers: &Peers, here: Option<u64>) -> Result<String, std::fmt::Error> {
    let mut text = String::from("Peers with TCP connections open now:\n");
    let found = &peers.found;
    if peers.rows.is_empty() {
        text.push_str("  none\n");
    } else {
        let cells = |peer: &Peer, sums: &Sums| {
            let [bytes_in, bytes_out] = bytes(sums);
            [
                address(peers, peer, here),
                peer.direction.unwrap_or("unknown").to_owned(),
                sums.open.to_string(),
                bytes_in,
                bytes_out,
            ]
        };
        let titles = ["ADDRESS", "DIRECTION", "OPEN", "BYTES IN", "BYTES OUT"];
        let mut rows = vec![titles.map(String::from)];
        let shown = peers.rows.iter().take(SHOWN);
        rows.extend(shown.map(|(peer, sums)| cells(peer, sums)));
        let widths = Widths::of(&rows);
        for row in &rows {
            writeln!(text, "  {}", widths.line(row, &[2, 3, 4]))?;
        }
    }
    let hidden = peers.rows.get(SHOWN..).unwrap_or(&[]);
    if !hidden.is_empty() {
        let mut sums = Sums::default();
        for (_, one) in hidden {
            sums.add(*one);
        }
        writeln!(text, "  {} more: {}", hidden.len(), describe_sums(&sums))?;
    }
    if peers.others.open > 0 {
        let sums = describe_sums(&peers.others);
        writeln!(
            text,
            "  and peers with few bytes, beyond the {MAX_PEERS} in memory: {sums}"
        )?;
    }
    if !found.without_counters.is_empty() {
        text.push_str(
            "  (in some network namespaces, only /proc/net can be read: no direction, no bytes)\n",
        );
    }
    for namespace in &found.unread {
        writeln!(text, "  (network namespace {namespace} could not be read)")?;
    }
    Ok(text)
}

fn describe_sums(sums: &Sums) -> String {
    let [bytes_in, bytes_out] = bytes(sums);
    let open = sums.open;
    format!("{open} connections, {bytes_in} bytes in, {bytes_out} bytes out")
}

/// The bytes in and out; a dash where they are known of none.
fn bytes(sums: &Sums) -> [String; 2] {
    let is_unknown = sums.uncounted == sums.open;
    [sums.bytes_in, sums.bytes_out].map(|bytes| match is_unknown {
        true => "-".into(),
        false => bytes.to_string(),
    })
}

/// The address with its scope, and the network namespace unless it is the caller's.
fn address(peers: &Peers, peer: &Peer, here: Option<u64>) -> String {
    let mut text = peer.address.to_string();
    let device = (peers.found.devices).get(&(peer.netns, peer.interface));
    if let Some(device) = device {
        text.push_str(&format!("%{}", quote(device)));
    }
    if Some(peer.netns) != here {
        text.push_str(&format!(" in network namespace {}", peer.netns));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_peers_are_shown_and_the_others_are_counted() {
        let peer = |number: u8, direction| {
            let peer = Peer {
                address: [10, 0, 0, number].into(),
                netns: 1,
                interface: 0,
                direction,
            };
            let sums = Sums {
                open: 1,
                uncounted: 0,
                bytes_in: 1000 - u64::from(number),
                bytes_out: 1,
            };
            (peer, sums)
        };
        let mut peers = Peers {
            rows: (1..=20).map(|number| peer(number, Some("in"))).collect(),
            ..Peers::default()
        };
        let all = text(&peers, Some(1)).unwrap();
        assert_eq!(all.lines().count(), 22, "{all}");
        assert!(all.contains("  10.0.0.1   in            1       999          1\n"));
        peers.rows.push(peer(21, None));
        peers.rows.push(peer(22, None));
        peers.others.open = 7;
        let all = text(&peers, Some(2)).unwrap();
        for expected in [
            "10.0.0.1 in network namespace 1   in ",
            "  2 more: 2 connections, 1957 bytes in, 2 bytes out\n",
            "65536 in memory: 7 connections, 0 bytes in",
        ] {
            assert!(all.contains(expected), "{all}");
        }
        peers.rows = vec![peer(1, None)];
        peers.rows[0].1.uncounted = 1;
        let all = text(&peers, Some(1)).unwrap();
        assert!(
            all.contains("10.0.0.1  unknown       1         -          -\n"),
            "{all}"
        );
    }
}
