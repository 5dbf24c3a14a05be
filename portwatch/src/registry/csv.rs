//! Reads IANA's `service-names-port-numbers.csv`: RFC 4180, UTF-8, twelve columns of which the
//! first four and the two dates matter. Columns are read by position: their titles changed over
//! the years.

use std::{fs::File, io::Read as _, path::Path, rc::Rc};

use csv::{ByteRecord, ReaderBuilder};
use jiff::civil::Date;

use super::{LAST_SYSTEM_PORT, ReadError, Registry, Row, Status, joined};
use crate::model::{Printable, Transport};

const COLUMNS: usize = 12;
const SERVICE: Column = Column(0, "Service Name");
const PORT: Column = Column(1, "Port Number");
const TRANSPORT: Column = Column(2, "Transport Protocol");
const DESCRIPTION: Column = Column(3, "Description");
const DATES: [Column; 2] = [
    Column(6, "Registration Date"),
    Column(7, "Modification Date"),
];

/// Index and title.
#[derive(Clone, Copy)]
struct Column(usize, &'static str);

pub(super) fn read(path: &Path) -> Result<Registry, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|source| ReadError::Io {
            path: path.into(),
            source,
        })?;
    parse(&bytes, path)
}

fn parse(bytes: &[u8], path: &Path) -> Result<Registry, ReadError> {
    let whole = |problem: &str| ReadError::File {
        path: path.into(),
        problem: problem.into(),
    };
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(bytes);
    let mut rows: Vec<Row> = Vec::new();
    let mut newest: Option<Date> = None;
    let mut record = ByteRecord::new();
    while reader
        .read_byte_record(&mut record)
        .map_err(|error| whole(&error.to_string()))?
    {
        let here = Here {
            path,
            record: &record,
        };
        if record.len() != COLUMNS {
            let problem = format!("has {} columns instead of {COLUMNS}", record.len());
            return Err(here.error(Column(record.len().min(COLUMNS) - 1, "the last"), &problem));
        }
        if record
            .position()
            .is_some_and(|position| position.record() == 0)
        {
            for column in [SERVICE, PORT, TRANSPORT, DESCRIPTION] {
                let title = here.text(column)?;
                // Spreadsheet programs prepend a byte order mark.
                if title.trim_start_matches('\u{feff}') != column.1 {
                    return Err(here.error(column, "is not titled as in IANA's file"));
                }
            }
            continue;
        }
        for column in DATES {
            // A few dates have no day; none of them is the newest.
            newest = newest.max(here.text(column)?.parse().ok());
        }
        if let Some(row) = row(&here)? {
            add(&mut rows, row);
        }
    }
    if rows.is_empty() {
        return Err(whole("names no system port"));
    }
    Ok(Registry::from_rows(rows, newest))
}

/// The row of one record, clipped to the system ports; None when it covers none.
fn row(here: &Here<'_>) -> Result<Option<Row>, ReadError> {
    let ports = here.text(PORT)?;
    if ports.is_empty() {
        return Ok(None);
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
        return Err(here.error(
            PORT,
            &format!("{ports:?} is neither a port nor a range of ports"),
        ));
    };
    if first > last {
        return Err(here.error(PORT, &format!("{ports:?} ends before it begins")));
    }
    let transport = match here.text(TRANSPORT)? {
        "" => None,
        name => match Transport::from_name(name) {
            Some(Transport::UdpLite) | None => {
                let problem = format!("{name:?} is not tcp, udp, sctp or dccp");
                return Err(here.error(TRANSPORT, &problem));
            }
            known => known,
        },
    };
    let service = here.text(SERVICE)?;
    let status = status(service, here.text(DESCRIPTION)?);
    if first > LAST_SYSTEM_PORT {
        return Ok(None);
    }
    let services = if service.is_empty() {
        Rc::default()
    } else {
        Rc::from([Printable::from(service)])
    };
    Ok(Some(Row {
        ports: first..=last.min(LAST_SYSTEM_PORT),
        transport,
        status,
        services,
    }))
}

/// The status: it has no column.
fn status(service: &str, description: &str) -> Status {
    let description = description.trim().to_ascii_lowercase();
    if !service.is_empty() {
        Status::Assigned
    } else if description.starts_with("unassigned") {
        Status::Unassigned
    } else if description.starts_with("reserved") {
        Status::Reserved
    } else if matches!(description.as_str(), "de-registered" | "removed") {
        Status::Deregistered
    } else {
        Status::Assigned
    }
}

/// Adds `row`, joining services that share port, transport and status.
fn add(rows: &mut Vec<Row>, row: Row) {
    let same = rows.iter_mut().rev().find(|known| {
        known.ports == row.ports && known.transport == row.transport && known.status == row.status
    });
    match same {
        Some(known) => known.services = joined(&known.services, &row.services),
        None => rows.push(row),
    }
}

/// One record and its file.
struct Here<'a> {
    path: &'a Path,
    record: &'a ByteRecord,
}

impl<'a> Here<'a> {
    fn text(&self, column: Column) -> Result<&'a str, ReadError> {
        std::str::from_utf8(self.record.get(column.0).unwrap_or_default())
            .map(str::trim)
            .map_err(|_| self.error(column, "is not UTF-8"))
    }

    fn error(&self, Column(index, title): Column, problem: &str) -> ReadError {
        let position = self.record.position();
        ReadError::Record {
            path: self.path.into(),
            record: position.map_or(0, |position| position.record() + 1),
            line: position.map_or(0, csv::Position::line),
            column: format!("{} ({title})", index + 1),
            problem: problem.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &str = "Service Name,Port Number,Transport Protocol,Description,Assignee,\
        Contact,Registration Date,Modification Date,Reference,Service Code,\
        Unauthorized Use Reported,Assignment Notes\n";

    fn parse_rows(rows: &str) -> Result<Registry, String> {
        parse(format!("{TITLES}{rows}").as_bytes(), Path::new("ports.csv"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn embedded_newlines_crlf_and_ranges_across_1023_are_read() {
        let registry = parse_rows(
            "one,7,tcp,\"two\nlines\",,,2020-01-02,,,,,\"a\r\n\"\"quoted\"\" note\"\r\n\
             ,1000-2000,,Unassigned,,,,2021-03,,,,\r\n\
             two,7,TCP,alias,,,,2019-05-06,,,,\n",
        )
        .unwrap();
        let seven = registry.entry(7, Transport::Tcp).unwrap();
        assert_eq!(
            seven
                .services
                .iter()
                .map(|name| &**name)
                .collect::<Vec<_>>(),
            ["one", "two"]
        );
        assert_eq!(
            registry.entry(1023, Transport::Udp).unwrap().range,
            Some((1000, 1023))
        );
        assert_eq!(registry.as_of(), Some(jiff::civil::date(2020, 1, 2)));
    }

    #[test]
    fn a_malformed_file_is_rejected_with_record_and_column() {
        let cases = [
            (
                "x,seven,tcp,d,,,,,,,,\n",
                "record 2 (line 2), column 2 (Port Number): \"seven\" is",
            ),
            (
                "a,1,tcp,\"d\nd\",,,,,,,,\nx,9-3,tcp,d,,,,,,,,\n",
                "record 3 (line 4), column 2",
            ),
            (
                "x,70000,tcp,d,,,,,,,,\n",
                "\"70000\" is neither a port nor a range",
            ),
            (
                "x,7,icmp,d,,,,,,,,\n",
                "column 3 (Transport Protocol): \"icmp\" is not tcp, udp",
            ),
            (
                "x,7,tcp,d,,,\n",
                "column 7 (the last): has 7 columns instead of 12",
            ),
            (
                "x,7,tcp,d,,,,,,,,,,\n",
                "column 12 (the last): has 14 columns instead of 12",
            ),
            ("", "ports.csv: names no system port"),
            ("x,2000,tcp,d,,,,,,,,\n", "ports.csv: names no system port"),
        ];
        for (rows, message) in cases {
            let error = parse_rows(rows).map(|_| ()).unwrap_err();
            assert!(error.contains(message), "{rows:?} gave {error}");
            assert!(error.starts_with("ports.csv: "), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let not_utf8 = [TITLES.as_bytes(), b"\xff,7,tcp,d,,,,,,,,\n"].concat();
        let error = parse(&not_utf8, Path::new("f")).unwrap_err().to_string();
        assert!(error.contains("record 2 (line 2), column 1 (Service Name): is not UTF-8"));
        let error = parse(b"<html>\n", Path::new("f")).unwrap_err().to_string();
        assert!(error.contains("has 1 columns instead of 12"), "{error}");
    }

    #[test]
    fn the_status_comes_from_name_and_description() {
        let cases = [
            ("ssh", "Unassigned", Status::Assigned),
            ("", "unassigned since", Status::Unassigned),
            ("", "Reserved for later", Status::Reserved),
            ("", "De-registered", Status::Deregistered),
            ("", "removed", Status::Deregistered),
            ("", "any private mail system", Status::Assigned),
            ("", "", Status::Assigned),
        ];
        for (service, description, expected) in cases {
            assert_eq!(
                status(service, description),
                expected,
                "{service:?} {description:?}"
            );
        }
    }
}
