//! The compact table that the source tree embeds, as text that can be reviewed in a diff: one row
//! per line in port order, with ports, transport (`any` for all), status and services.

use std::fmt::Write as _;

use jiff::civil::Date;

use super::{ReadError, Registry, Row, Status};
use crate::model::{Printable, Transport};

const ANY: &str = "any";
const AS_OF: &str = "as_of";

/// Writes `registry` in the format that [`Registry::embedded`] reads.
#[must_use]
pub fn to_table(registry: &Registry) -> String {
    let mut rows: Vec<&Row> = registry.rows.iter().collect();
    rows.sort_by_key(|row| (*row.ports.start(), *row.ports.end(), row.transport));
    let mut table = String::from(
        "# IANA's Service Name and Transport Protocol Port Number Registry, ports 0-1023.\n\
         # Made by `cargo xtask registry FILE.csv`; do not edit.\n",
    );
    if let Some(as_of) = registry.as_of {
        let _ = writeln!(table, "{AS_OF} {as_of}");
    }
    for row in rows {
        let (first, last) = (row.ports.start(), row.ports.end());
        let ports = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        let transport = row.transport.map_or(ANY, Transport::name);
        let _ = write!(table, "{ports:<9} {transport:<4} {}", row.status.name());
        for service in &*row.services {
            let _ = write!(table, " {service}");
        }
        table.push('\n');
    }
    table
}

pub(super) fn read(table: &str) -> Result<Registry, ReadError> {
    let mut as_of: Option<Date> = None;
    let mut rows = Vec::new();
    for (index, line) in table.lines().enumerate() {
        let error = |problem: &str| ReadError::Table {
            line: index + 1,
            problem: problem.into(),
        };
        if line.starts_with('#') {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let first = words.next().ok_or_else(|| error("is empty"))?;
        if first == AS_OF {
            let date = words.next().and_then(|date| date.parse().ok());
            as_of = Some(date.ok_or_else(|| error("has no date"))?);
            continue;
        }
        let (start, end) = first.split_once('-').unwrap_or((first, first));
        let (Ok(start), Ok(end)) = (start.parse::<u16>(), end.parse::<u16>()) else {
            return Err(error("does not begin with ports"));
        };
        let transport = match words.next().ok_or_else(|| error("has no transport"))? {
            ANY => None,
            name => Some(Transport::from_name(name).ok_or_else(|| error("unknown transport"))?),
        };
        let status = words
            .next()
            .and_then(|name| Status::ALL.into_iter().find(|status| status.name() == name))
            .ok_or_else(|| error("has no status"))?;
        let services = words.map(Printable::from).collect();
        rows.push(Row {
            ports: start..=end,
            transport,
            status,
            services,
        });
    }
    Registry::from_rows(rows, as_of).map_err(|problem| ReadError::Table {
        line: 0,
        problem: problem.into(),
    })
}
