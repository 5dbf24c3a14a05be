//! IANA's Service Name and Transport Protocol Port Number Registry (RFC 6335): the entry of each
//! (port, transport), for the system ports.
#![forbid(unsafe_code)]

mod csv;
mod diff;
mod info;
mod table;

use std::{collections::HashSet, fmt, ops::RangeInclusive, path::PathBuf, rc::Rc};

use jiff::civil::Date;
use portwatch_common::SYSTEM_PORTS;
use serde::Serialize;

pub use self::{diff::diff, info::RegistryInfo, table::to_table};
use crate::{
    model::{Printable, Transport},
    util::input::InputError,
};

/// The status of a (port, transport).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Available for assignment.
    Unassigned,
    /// Formerly assigned.
    Deregistered,
    /// Not available for regular assignment (RFC 6335 section 6).
    Reserved,
    /// Assigned to a service, with or without a name.
    Assigned,
}

impl Status {
    /// Every status, in display order.
    pub const ALL: [Self; 4] = [
        Self::Assigned,
        Self::Unassigned,
        Self::Reserved,
        Self::Deregistered,
    ];

    /// The name in the output and in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unassigned => "unassigned",
            Self::Deregistered => "deregistered",
            Self::Reserved => "reserved",
            Self::Assigned => "assigned",
        }
    }
}

/// What an [`Entry`] is derived from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Basis {
    /// A row of the registry for this port and transport.
    #[serde(rename = "row")]
    Row,
    /// There is none, and the port is assigned or reserved on another transport: reserved by RFC 6335
    /// section 7.2.
    #[serde(rename = "rfc6335-7.2")]
    OtherTransport,
    /// There is none, and the port is neither assigned nor reserved on another transport.
    #[serde(rename = "no-row")]
    NoRow,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Row => "registry row",
            Self::OtherTransport => {
                "no registry row; assigned or reserved on another transport, RFC 6335 section 7.2"
            }
            Self::NoRow => "no registry row, and not assigned on another transport",
        })
    }
}

/// The registry entry of one (port, transport).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The status.
    pub status: Status,
    /// The first and last port of its row, when that covers more than one.
    pub range: Option<(u16, u16)>,
    /// Service names in the registry's order: several services can share a port, and an assigned port
    /// can have no name.
    pub services: Rc<[Printable]>,
    /// What the status is derived from.
    pub basis: Basis,
}

/// One row of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    ports: RangeInclusive<u16>,
    /// None for all transports.
    transport: Option<Transport>,
    status: Status,
    services: Rc<[Printable]>,
}

/// Why a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read, or somebody else can change it.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A record is malformed.
    #[error(
        "{}: record {record} (line {line}), column {column}: {problem}; \
         get IANA's service-names-port-numbers.csv again",
        path.display()
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// Counted from 1, including the title record.
        record: u64,
        /// The record's first line, counted from 1.
        line: u64,
        /// Counted from 1, with the column's title.
        column: String,
        /// What is wrong there.
        problem: String,
    },
    /// The file is not a registry.
    #[error("{}: {problem}; get IANA's service-names-port-numbers.csv again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The embedded table is damaged.
    #[error("the embedded registry table, line {line}: {problem}")]
    Table {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
}

/// The registry of one date, for ports 0-1023.
#[derive(Clone, Debug)]
pub struct Registry {
    as_of: Option<Date>,
    rows: Vec<Row>,
    /// By transport as in `TRANSPORTS`, then by port.
    entries: [Vec<Entry>; TRANSPORTS.len()],
}

/// The transports in the registry.
const TRANSPORTS: [Transport; 4] = [
    Transport::Tcp,
    Transport::Udp,
    Transport::Sctp,
    Transport::Dccp,
];

/// The embedded table.
const TABLE: &str = include_str!("table.txt");

impl Registry {
    /// The built-in registry.
    ///
    /// # Errors
    ///
    /// [`ReadError::Table`] when the table in the source tree is malformed.
    pub fn embedded() -> Result<Self, ReadError> {
        table::read(TABLE)
    }

    /// The date of the embedded table, without reading all of it.
    #[must_use]
    pub fn embedded_date() -> Option<&'static str> {
        TABLE.lines().find_map(|line| line.strip_prefix("as_of "))
    }

    /// Reads IANA's CSV of any year. `as_of` overrides the newest date in the file.
    ///
    /// # Errors
    ///
    /// [`ReadError`] with the file and, for a malformed record, its number and column.
    pub fn from_csv(path: &std::path::Path, as_of: Option<Date>) -> Result<Self, ReadError> {
        let mut registry = csv::read(path)?;
        registry.as_of = as_of.or(registry.as_of);
        Ok(registry)
    }

    /// Reads the text of a CSV: for the fuzz targets.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    #[cfg(feature = "testing")]
    pub fn parse_csv(bytes: &[u8]) -> Result<Self, ReadError> {
        csv::parse(bytes, std::path::Path::new("input"))
    }

    /// The registry's date.
    #[must_use]
    pub const fn as_of(&self) -> Option<Date> {
        self.as_of
    }

    /// The entry of a system port; None from 1024 up. UDP-Lite has UDP's
    /// (RFC 3828 section 3.1).
    #[must_use]
    pub fn entry(&self, port: u16, transport: Transport) -> Option<&Entry> {
        let row = match transport {
            Transport::Tcp => 0,
            Transport::Udp | Transport::UdpLite => 1,
            Transport::Sctp => 2,
            Transport::Dccp => 3,
        };
        self.entries[row].get(usize::from(port))
    }

    /// How many system ports have each of [`Status::ALL`] on `transport`.
    #[must_use]
    pub fn counts(&self, transport: Transport) -> [usize; Status::ALL.len()] {
        Status::ALL.map(|status| {
            system_ports()
                .filter_map(|port| self.entry(port, transport))
                .filter(|entry| entry.status == status)
                .count()
        })
    }

    /// How many system ports have no row on any transport. In IANA's own files: none.
    #[must_use]
    pub fn ports_without_row(&self) -> usize {
        system_ports()
            .filter(|port| {
                TRANSPORTS.iter().all(|transport| {
                    self.entry(*port, *transport)
                        .is_some_and(|entry| entry.basis != Basis::Row)
                })
            })
            .count()
    }

    /// Fails when rows overlap beyond all measure.
    fn from_rows(rows: Vec<Row>, as_of: Option<Date>) -> Result<Self, &'static str> {
        // Grouped first: comparing each port with each row would be quadratic.
        let mut by_port: Vec<Vec<&Row>> = system_ports().map(|_| Vec::new()).collect();
        let mut left = MAX_STATED;
        for row in &rows {
            left = left
                .checked_sub(row.ports.len())
                .ok_or("has too many overlapping ranges of system ports")?;
            for port in row.ports.clone() {
                if let Some(here) = by_port.get_mut(usize::from(port)) {
                    here.push(row);
                }
            }
        }
        let mut left = MAX_STATED;
        let mut entries = TRANSPORTS.map(|_| Vec::with_capacity(by_port.len()));
        let no_names: Rc<[Printable]> = Rc::default();
        for here in &by_port {
            let stated = TRANSPORTS.map(|transport| stated(here, transport));
            let statuses: Vec<Status> = stated.iter().flatten().map(|one| one.status).collect();
            let services = stated.iter().flatten().map(|one| one.services.len());
            left = left
                .checked_sub(services.sum())
                .ok_or("has too many services on the same system ports")?;
            for (entries, stated) in entries.iter_mut().zip(stated) {
                entries.push(stated.unwrap_or_else(|| by_rule(&statuses, &no_names)));
            }
        }
        Ok(Self {
            as_of,
            rows,
            entries,
        })
    }
}

/// How often the rows may name a system port, and how many services all entries may have: a hundred
/// times as many as in IANA's file.
const MAX_STATED: usize = 1 << 20;

/// The last system port.
pub const LAST_SYSTEM_PORT: u16 = (SYSTEM_PORTS - 1) as u16;

/// Ports 0-1023.
pub const fn system_ports() -> RangeInclusive<u16> {
    0..=LAST_SYSTEM_PORT
}

/// The entry that a port's rows give a transport: a row for the transport precedes one for all, then
/// an assigned one precedes the others. It has the service names of all rows of equal rank.
fn stated(rows: &[&Row], transport: Transport) -> Option<Entry> {
    let applies = |row: &&Row| row.transport.is_none_or(|named| named == transport);
    let rank = |row: &Row| (row.transport.is_some(), row.status);
    let rows = || rows.iter().copied().filter(applies);
    let best = rows().max_by_key(|row| rank(row))?;
    let agreed = rows().filter(|row| rank(row) == rank(best));
    let services = joined(agreed.map(|row| &row.services));
    let (first, last) = (*best.ports.start(), *best.ports.end());
    Some(Entry {
        status: best.status,
        range: (first != last).then_some((first, last)),
        services,
        basis: Basis::Row,
    })
}

/// All services, without duplicates.
fn joined<'a>(mut of_rows: impl Iterator<Item = &'a Rc<[Printable]>>) -> Rc<[Printable]> {
    let Some(first) = of_rows.next() else {
        return Rc::default();
    };
    let Some(second) = of_rows.next() else {
        return Rc::clone(first);
    };
    let mut known: HashSet<&Printable> = HashSet::new();
    let all = [first, second].into_iter().chain(of_rows);
    let all = all.flat_map(|services| services.iter());
    all.filter(|service| known.insert(*service))
        .cloned()
        .collect()
}

/// The entry of a transport without a row, from the status on the others.
fn by_rule(others: &[Status], no_names: &Rc<[Printable]>) -> Entry {
    let taken = others
        .iter()
        .any(|status| matches!(status, Status::Assigned | Status::Reserved));
    let (status, basis) = if taken {
        (Status::Reserved, Basis::OtherTransport)
    } else {
        (Status::Unassigned, Basis::NoRow)
    };
    Entry {
        status,
        range: None,
        services: Rc::clone(no_names),
        basis,
    }
}

#[cfg(test)]
mod tests;
