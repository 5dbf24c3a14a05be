//! IANA's word on a (port, transport): the Service Name and Transport Protocol Port Number
//! Registry (RFC 6335), for the system ports.

mod csv;
mod diff;
mod entry;
mod table;

use std::{fmt, io, ops::RangeInclusive, path::PathBuf, rc::Rc};

use jiff::civil::Date;
use portwatch_common::SYSTEM_PORTS;
use serde::Serialize;

pub use self::{diff::diff, entry::RegistryEntry, table::to_table};
use crate::model::{Printable, Transport};

/// What the registry says of a (port, transport).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nobody has it: available for assignment.
    Unassigned,
    /// It was a service's, and is not any more.
    Deregistered,
    /// IANA holds it back.
    Reserved,
    /// A service has it, with or without a name.
    Assigned,
}

impl Status {
    /// Every status, in the order in which they are listed to people.
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

/// Where a [`Verdict`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Basis {
    /// A row of the registry names this port and transport.
    #[serde(rename = "row")]
    Row,
    /// No row does, and the port is another transport's: reserved by RFC 6335 section 7.2.
    #[serde(rename = "rfc6335-7.2")]
    OtherTransport,
    /// No row does, and no other transport has the port: nobody was given it.
    #[serde(rename = "no-row")]
    NoRow,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Row => "by the registry's row",
            Self::OtherTransport => "no row; another transport has the port, RFC 6335 section 7.2",
            Self::NoRow => "no row, and no other transport has the port",
        })
    }
}

/// What the registry says of one (port, transport).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The status.
    pub status: Status,
    /// The first and last port of the registry's row, when that names more than one.
    pub range: Option<(u16, u16)>,
    /// Service names in the registry's order; several can share a port, an assigned port can
    /// have none.
    pub services: Rc<[Printable]>,
    /// Whether a row or a rule says so.
    pub basis: Basis,
}

/// One statement of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    ports: RangeInclusive<u16>,
    /// None speaks for all transports.
    transport: Option<Transport>,
    status: Status,
    services: Rc<[Printable]>,
}

/// Why a registry file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record is not what IANA's file has there.
    #[error(
        "{}: record {record} (line {line}), column {column}: {problem}; \
         get IANA's service-names-port-numbers.csv again",
        path.display()
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// Counted from 1, the title record included.
        record: u64,
        /// The line on which the record begins, counted from 1.
        line: u64,
        /// Counted from 1, with the column's title.
        column: String,
        /// What is wrong there.
        problem: String,
    },
    /// The file as a whole is not a registry.
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
    /// Verdicts by transport as in `TRANSPORTS`, then by port.
    verdicts: [Vec<Verdict>; TRANSPORTS.len()],
}

/// The transports that the registry knows.
const TRANSPORTS: [Transport; 4] = [
    Transport::Tcp,
    Transport::Udp,
    Transport::Sctp,
    Transport::Dccp,
];

impl Registry {
    /// The registry that was built in.
    ///
    /// # Errors
    ///
    /// [`ReadError::Table`] when the table in the source tree was damaged.
    pub fn embedded() -> Result<Self, ReadError> {
        table::read(include_str!("table.txt"))
    }

    /// Reads IANA's CSV of any year. `as_of` overrides the newest date in the file.
    ///
    /// # Errors
    ///
    /// [`ReadError`], which names the file and, where one is to blame, the record and column.
    pub fn from_csv(path: &std::path::Path, as_of: Option<Date>) -> Result<Self, ReadError> {
        let mut registry = csv::read(path)?;
        registry.as_of = as_of.or(registry.as_of);
        Ok(registry)
    }

    /// The day of which the registry speaks.
    #[must_use]
    pub const fn as_of(&self) -> Option<Date> {
        self.as_of
    }

    /// What the registry says of a system port; None from 1024 up. UDP-Lite follows UDP's rows
    /// (RFC 3828 section 3.1).
    #[must_use]
    pub fn verdict(&self, port: u16, transport: Transport) -> Option<&Verdict> {
        let row = match transport {
            Transport::Tcp => 0,
            Transport::Udp | Transport::UdpLite => 1,
            Transport::Sctp => 2,
            Transport::Dccp => 3,
        };
        self.verdicts[row].get(usize::from(port))
    }

    /// How many system ports have each of [`Status::ALL`] on `transport`.
    #[must_use]
    pub fn counts(&self, transport: Transport) -> [usize; Status::ALL.len()] {
        Status::ALL.map(|status| {
            system_ports()
                .filter_map(|port| self.verdict(port, transport))
                .filter(|verdict| verdict.status == status)
                .count()
        })
    }

    /// System ports that no row names on any transport; IANA's own files have none.
    #[must_use]
    pub fn unnamed_ports(&self) -> usize {
        system_ports()
            .filter(|port| {
                TRANSPORTS.iter().all(|transport| {
                    self.verdict(*port, *transport)
                        .is_some_and(|verdict| verdict.basis != Basis::Row)
                })
            })
            .count()
    }

    fn from_rows(rows: Vec<Row>, as_of: Option<Date>) -> Self {
        // Each row is looked at where it applies only: there are more rows than ports.
        let mut by_port: Vec<Vec<&Row>> = system_ports().map(|_| Vec::new()).collect();
        for row in &rows {
            for port in row.ports.clone() {
                if let Some(here) = by_port.get_mut(usize::from(port)) {
                    here.push(row);
                }
            }
        }
        let mut verdicts = TRANSPORTS.map(|_| Vec::with_capacity(by_port.len()));
        let nobody: Rc<[Printable]> = Rc::default();
        for here in &by_port {
            let stated = TRANSPORTS.map(|transport| stated(here, transport));
            let statuses: Vec<Status> = stated.iter().flatten().map(|one| one.status).collect();
            for (verdicts, stated) in verdicts.iter_mut().zip(stated) {
                verdicts.push(stated.unwrap_or_else(|| by_rule(&statuses, &nobody)));
            }
        }
        Self {
            as_of,
            rows,
            verdicts,
        }
    }
}

/// The last of the ports of which the registry's verdicts are.
pub const LAST_SYSTEM_PORT: u16 = (SYSTEM_PORTS - 1) as u16;

/// Ports 0-1023.
pub const fn system_ports() -> RangeInclusive<u16> {
    0..=LAST_SYSTEM_PORT
}

/// What a port's rows say of a transport: a row for the transport beats one for all, then an
/// assigned one beats the others; the names of all rows that agree are kept.
fn stated(rows: &[&Row], transport: Transport) -> Option<Verdict> {
    let applies = |row: &&Row| row.transport.is_none_or(|named| named == transport);
    let rank = |row: &Row| (row.transport.is_some(), row.status);
    let rows = || rows.iter().copied().filter(applies);
    let best = rows().max_by_key(|row| rank(row))?;
    let agreed = rows().filter(|row| rank(row) == rank(best));
    let services = agreed
        .map(|row| Rc::clone(&row.services))
        .reduce(|services, more| joined(&services, &more))?;
    let (first, last) = (*best.ports.start(), *best.ports.end());
    Some(Verdict {
        status: best.status,
        range: (first != last).then_some((first, last)),
        services,
        basis: Basis::Row,
    })
}

/// Both, without what is in both twice.
fn joined(services: &[Printable], more: &[Printable]) -> Rc<[Printable]> {
    let more = more.iter().filter(|service| !services.contains(service));
    services.iter().chain(more).cloned().collect()
}

/// The status of a transport without a row, from what the others' rows say.
fn by_rule(others: &[Status], nobody: &Rc<[Printable]>) -> Verdict {
    let taken = others
        .iter()
        .any(|status| matches!(status, Status::Assigned | Status::Reserved));
    let (status, basis) = if taken {
        (Status::Reserved, Basis::OtherTransport)
    } else {
        (Status::Unassigned, Basis::NoRow)
    };
    Verdict {
        status,
        range: None,
        services: Rc::clone(nobody),
        basis,
    }
}

#[cfg(test)]
mod tests;
