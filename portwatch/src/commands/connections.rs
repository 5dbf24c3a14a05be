//! `portwatch list --connections`: the open TCP connections on watched ports.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{list::warn_of_limits, table::Widths, write};
use crate::{
    alert,
    inventory::connections::{self, Connection, Connections},
    linux::netns::inode_of,
    model::{Direction, Printable, Transport},
    output::FormatName,
    process::{Processes, is_running},
    registry::LAST_SYSTEM_PORT,
    util::{console, parallel, quote},
};

/// Writes the open connections on watched ports: a table, or one JSON object each, as
/// docs/connection.schema.json describes it.
///
/// # Errors
///
/// When /proc cannot be read or `out` not written to.
pub(super) fn run(
    watched: impl Iterator<Item = (u16, Transport)>,
    format: FormatName,
    out: &mut impl io::Write,
) -> Result<()> {
    let watched: HashSet<u16> = watched
        .filter(|(_, transport)| *transport == Transport::Tcp)
        .map(|(port, _)| port)
        .collect();
    let is_watched = |port| watched.contains(&port);
    let connections = connections::read(1..=LAST_SYSTEM_PORT, is_watched, parallel::threads())
        .context("reading /proc")?;
    let listing = Listing::new(&connections);
    match format {
        FormatName::Text => listing.table(out)?,
        FormatName::Json => listing.json(out)?,
    }
    if connections.omitted > 0 {
        console::log(&format!(
            "{} connections are not listed: there are more than {}",
            connections.omitted,
            connections::MAX_ROWS
        ));
    }
    for namespace in &connections.found.without_counters {
        console::log(&format!(
            "network namespace {namespace}: only /proc/net can be read, which has no bytes and no direction"
        ));
    }
    warn_of_limits(&connections.found.unread);
    Ok(())
}

/// The schema number of the JSON.
const SCHEMA: u32 = 1;

/// Bytes of an executable's path in JSON.
const MAX_EXE: usize = 512;

/// Bytes that are written at once.
const CHUNK: usize = 1 << 16;

/// What is shown of a process, of which there can be as many as the host has.
#[derive(Clone, Debug, Serialize)]
struct Owner {
    pid: u32,
    comm: Printable,
    exe: Option<Printable>,
    uid: u32,
    user: Option<Printable>,
    /// Which of these values a process can choose.
    unverified: Vec<&'static str>,
    #[serde(skip)]
    start_ns: u64,
}

/// A connection in JSON.
#[derive(Serialize)]
struct Row<'a> {
    schema: u32,
    transport: Transport,
    local: Endpoint,
    peer: Endpoint,
    device: Option<&'a Printable>,
    direction: Option<Direction>,
    state: &'static str,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    idle_ms: Option<u32>,
    uid: Option<u32>,
    process: Option<&'a Owner>,
    holders: u32,
    cookie: Option<u64>,
    netns: u64,
    host_netns: Option<bool>,
}

#[derive(Serialize)]
struct Endpoint {
    address: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            address: address.ip(),
            port: address.port(),
        }
    }
}

struct Listing<'a> {
    connections: &'a Connections,
    owners: HashMap<u32, Owner>,
    host_netns: Option<u64>,
}

impl<'a> Listing<'a> {
    fn new(connections: &'a Connections) -> Self {
        let mut owners: HashMap<u32, Option<Owner>> = HashMap::new();
        let mut names = Processes::patient();
        for row in &connections.rows {
            if let Some(holder) = row.holder {
                owners.entry(holder.pid).or_insert_with(|| {
                    let process = names.look_up(holder.pid)?;
                    let mut unverified = process.unverified();
                    unverified.retain(|key| *key == "exe");
                    Some(Owner {
                        pid: process.pid,
                        comm: process.comm,
                        exe: process.exe.map(|exe| exe.shortened(MAX_EXE)),
                        uid: process.uid,
                        user: process.user,
                        unverified,
                        start_ns: process.start_ns,
                    })
                });
            }
        }
        Self {
            connections,
            owners: owners
                .into_iter()
                .filter_map(|(pid, owner)| Some((pid, owner?)))
                .collect(),
            host_netns: inode_of(1).or_else(|| inode_of(2)),
        }
    }

    /// Leaves out the processes that have ended or closed the connection: a pid can have been reused
    /// since the descriptors were read.
    fn checked_owners(&self) -> Vec<Option<&Owner>> {
        let mut owners: Vec<Option<&Owner>> = (self.connections.rows.iter())
            .map(|row| {
                let owner = self.owners.get(&row.holder?.pid)?;
                row.is_held().then_some(owner)
            })
            .collect();
        let running: HashSet<u32> = (self.owners.values())
            .filter(|owner| is_running(owner.pid, owner.start_ns))
            .map(|owner| owner.pid)
            .collect();
        for owner in &mut owners {
            *owner = owner.filter(|owner| running.contains(&owner.pid));
        }
        owners
    }

    fn device(&self, row: &Connection) -> Option<&Printable> {
        let devices = &self.connections.found.devices;
        devices.get(&(row.netns, row.interface))
    }

    fn json(&self, out: &mut impl io::Write) -> Result<()> {
        let mut text = String::new();
        for (row, owner) in self.connections.rows.iter().zip(self.checked_owners()) {
            let traffic = row.traffic;
            let row = Row {
                schema: SCHEMA,
                transport: Transport::Tcp,
                local: row.local.into(),
                peer: row.peer.into(),
                device: self.device(row),
                direction: row.direction,
                state: row.state.name(),
                bytes_in: traffic.map(|traffic| traffic.bytes_in),
                bytes_out: traffic.map(|traffic| traffic.bytes_out),
                idle_ms: traffic.map(|traffic| traffic.idle_ms),
                uid: row.uid,
                process: owner,
                holders: row.holders,
                cookie: row.cookie,
                netns: row.netns,
                host_netns: self.host_netns.map(|host| host == row.netns),
            };
            text.push_str(&serde_json::to_string(&row)?);
            text.push('\n');
            if text.len() >= CHUNK {
                write(std::mem::take(&mut text), out)?;
            }
        }
        Ok(write(text, out)?)
    }

    /// One line per connection, columns aligned. Nothing without a connection.
    fn table(&self, out: &mut impl io::Write) -> Result<()> {
        if self.connections.rows.is_empty() {
            return Ok(());
        }
        let owners = self.checked_owners();
        // Twice, so that no more than a line is in memory for each connection.
        let rows = || {
            let rows = self.connections.rows.iter().zip(&owners);
            let cells = rows.map(|(row, owner)| self.cells(row, *owner));
            std::iter::once(TITLES.map(String::from)).chain(cells)
        };
        let widths = Widths::of(rows());
        let mut text = String::new();
        for row in rows() {
            text.push_str(&widths.line(&row, &NUMBERS));
            text.push('\n');
            if text.len() >= CHUNK {
                write(std::mem::take(&mut text), out)?;
            }
        }
        Ok(write(text, out)?)
    }

    fn cells(&self, row: &Connection, owner: Option<&Owner>) -> [String; COLUMNS] {
        let unknown = || "-".to_owned();
        let device = self.device(row).map(|name| quote(name));
        let end = |end: SocketAddr| alert::local(end.ip(), end.port(), device.as_deref());
        let mut local = end(row.local);
        if let Some(device) = &device {
            local.push_str(&format!(" on {device}"));
        }
        let traffic = row.traffic;
        let bytes = |bytes: Option<u64>| bytes.map_or_else(unknown, |bytes| bytes.to_string());
        let process = owner.map(|owner| {
            let mut text = format!("{}[{}]", quote(&owner.comm), owner.pid);
            if let Some(more @ 1..) = row.holders.checked_sub(1) {
                text.push_str(&format!(" and {more} more"));
            }
            text
        });
        let user = match owner {
            Some(Owner {
                user: Some(user), ..
            }) => Some(quote(user).into_owned()),
            Some(owner) => Some(owner.uid.to_string()),
            None => row.uid.map(|uid| uid.to_string()),
        };
        [
            local,
            end(row.peer),
            row.direction.map_or("unknown", Direction::name).to_owned(),
            bytes(traffic.map(|traffic| traffic.bytes_in)),
            bytes(traffic.map(|traffic| traffic.bytes_out)),
            traffic.map_or_else(unknown, |traffic| duration(traffic.idle_ms)),
            process.unwrap_or_else(unknown),
            user.unwrap_or_else(unknown),
            match self.host_netns == Some(row.netns) {
                true => "host".into(),
                false => row.netns.to_string(),
            },
        ]
    }
}

const COLUMNS: usize = 9;

const TITLES: [&str; COLUMNS] = [
    "LOCAL",
    "PEER",
    "DIRECTION",
    "BYTES IN",
    "BYTES OUT",
    "IDLE",
    "PROCESS",
    "USER",
    "NETNS",
];

/// The columns that are aligned to the right.
const NUMBERS: [usize; 3] = [3, 4, 5];

/// `250ms`, `12s`, `3m`, `5h`, `2d`: the largest unit of which there is a whole one.
fn duration(milliseconds: u32) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        for (milliseconds, expected) in [
            (0, "0ms"),
            (999, "999ms"),
            (59_999, "59s"),
            (60_000, "1m"),
            (3_600_000, "1h"),
            (172_800_000, "2d"),
        ] {
            assert_eq!(duration(milliseconds), expected);
        }
    }
}
