//! Reads IANA's `service-names-port-numbers.csv`: RFC 4180, UTF-8, twelve columns of which the
//! first four and the two dates matter. Columns are read by position: their titles changed over
//! the years.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    rc::Rc,
};

use csv::{ByteRecord, ReaderBuilder};
use jiff::civil::Date;

use super::{LAST_SYSTEM_PORT, ReadError, Registry, Row, Status};
use crate::{
    model::{Printable, Transport},
    util::input::{self, Allowed},
};

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

/// Bytes of a file: 25 times those of IANA's in 2026.
const MAX_BYTES: u64 = 32 << 20;

/// Records of a file: 15 times those of IANA's.
const MAX_RECORDS: u64 = 250_000;

/// Bytes of a service's name: RFC 6335 section 5.1 allows 15, older names are longer.
const MAX_SERVICE: usize = 128;

pub(super) fn read(path: &Path) -> Result<Registry, ReadError> {
    parse(&input::read(path, MAX_BYTES, Allowed::FileOrPipe)?, path)
}

pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Registry, ReadError> {
    let whole = |problem: &str| ReadError::File {
        path: path.into(),
        problem: problem.into(),
    };
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(bytes);
    let mut rows = Rows::default();
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
            rows.add(row);
        }
        if record
            .position()
            .is_some_and(|position| position.record() >= MAX_RECORDS)
        {
            return Err(whole(&format!("has more than {MAX_RECORDS} records")));
        }
    }
    if rows.all.is_empty() {
        return Err(whole("names no system port"));
    }
    Registry::from_rows(rows.finish(), newest).map_err(whole)
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
    if service.len() > MAX_SERVICE {
        return Err(here.error(SERVICE, &format!("has more than {MAX_SERVICE} bytes")));
    }
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

/// First and last port, transport and status.
type Key = (u16, u16, Option<Transport>, Status);

/// The rows, with the services joined that share port, transport and status.
#[derive(Default)]
struct Rows {
    all: Vec<Row>,
    by_key: HashMap<Key, usize>,
    /// The services of each row, in order, without duplicates.
    services: Vec<(Vec<Printable>, HashSet<Printable>)>,
}

impl Rows {
    fn add(&mut self, row: Row) {
        let (first, last) = (*row.ports.start(), *row.ports.end());
        let key = (first, last, row.transport, row.status);
        let index = *self.by_key.entry(key).or_insert(self.all.len());
        if index == self.all.len() {
            self.services.push(<(Vec<_>, HashSet<_>)>::default());
        }
        if let Some((services, known)) = self.services.get_mut(index) {
            for service in &*row.services {
                if known.insert(service.clone()) {
                    services.push(service.clone());
                }
            }
        }
        if index == self.all.len() {
            self.all.push(row);
        }
    }

    fn finish(self) -> Vec<Row> {
        let mut all = self.all;
        for (row, (services, _)) in all.iter_mut().zip(self.services) {
            row.services = services.into();
        }
        all
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

    /// The fields after the first four.
    const REST: &str = ",,,,,,,,\n";

    #[test]
    fn rows_that_share_everything_or_overlap_are_few_or_an_error() {
        let rows = |count: usize, row: &dyn Fn(usize) -> String| -> String {
            (0..count).map(|index| row(index) + REST).collect()
        };
        // As many services on each port as records allow; all names are kept, in order.
        let registry = parse_rows(&rows(200_000, &|index| {
            format!("s{index},{},tcp,d", index % 1024)
        }));
        let services = |registry: &Registry, port| {
            let entry = registry.entry(port, Transport::Tcp).unwrap();
            entry
                .services
                .iter()
                .map(|name| name.to_string())
                .collect::<Vec<_>>()
        };
        let of_seven = services(&registry.unwrap(), 7);
        assert_eq!(of_seven[..2], ["s7", "s1031"]);
        assert_eq!(of_seven.len(), 196);
        // One port has them all.
        let registry = parse_rows(&rows(200_000, &|index| format!("s{},7,tcp,d", index / 2)));
        assert_eq!(services(&registry.unwrap(), 7).len(), 100_000);
        let cases = [
            (
                rows(300_000, &|_| "s,7,tcp,d".into()),
                "has more than 250000 records",
            ),
            (
                rows(5_000, &|index| {
                    format!(",{}-{},tcp,Reserved", index % 100, 500 + index / 100)
                }),
                "has too many overlapping ranges",
            ),
            (
                rows(1_000, &|index| {
                    format!("s{index},{}-{},,d", index % 40, 900 + index / 40)
                }),
                "has too many services on the same system ports",
            ),
            (
                rows(1, &|_| format!("{},7,tcp,d", "s".repeat(129))),
                "column 1 (Service Name): has more than 128 bytes",
            ),
        ];
        for (rows, problem) in cases {
            let error = parse_rows(&rows).map(|_| ()).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
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
