//! Derivation against IANA's own files of three years. They are not part of this repository:
//! `PORTWATCH_IANA_DIR` is their directory.

use std::path::PathBuf;

use super::*;

/// IANA's file of that date; None where there is none, which under CI is a failure.
fn iana(date: &str) -> Option<Registry> {
    let directory = std::env::var_os("PORTWATCH_IANA_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/iana"),
        PathBuf::from,
    );
    let path = directory.join(format!("service-names-port-numbers-{date}.csv"));
    if !path.exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "{} is missing: set PORTWATCH_IANA_DIR to a directory with IANA's files",
            path.display()
        );
        eprintln!(
            "SKIPPED: {} is missing; see PORTWATCH_IANA_DIR",
            path.display()
        );
        return None;
    }
    Some(Registry::from_csv(&path, None).unwrap())
}

const NEWEST: &str = "2026-08-17";

#[test]
fn the_counts_of_three_years_are_right() {
    // assigned, unassigned, reserved, deregistered; tcp's reserved include 716 and 1008 by rule.
    let expected = [
        ("2022-01-25", [694, 285, 43, 2], [690, 285, 47, 2]),
        ("2026-02-13", [689, 282, 51, 2], [686, 282, 54, 2]),
        (NEWEST, [689, 282, 51, 2], [686, 282, 54, 2]),
    ];
    for (date, tcp, udp) in expected {
        let Some(registry) = iana(date) else { continue };
        assert_eq!(registry.as_of().unwrap().to_string(), date);
        assert_eq!(registry.counts(Transport::Tcp), tcp, "tcp of {date}");
        assert_eq!(registry.counts(Transport::Udp), udp, "udp of {date}");
        assert_eq!(registry.ports_without_row(), 0);
        let unassigned_on_both = system_ports()
            .filter(|port| {
                [Transport::Tcp, Transport::Udp].iter().all(|transport| {
                    registry.entry(*port, *transport).unwrap().status == Status::Unassigned
                })
            })
            .count();
        assert_eq!(unassigned_on_both, tcp[1]);
    }
}

#[test]
fn the_embedded_table_is_the_newest_file() {
    let embedded = Registry::embedded().unwrap();
    assert_eq!(embedded.as_of().unwrap().to_string(), NEWEST);
    assert_eq!(to_table(&embedded), include_str!("table.txt"));
    let Some(newest) = iana(NEWEST) else { return };
    assert_eq!(to_table(&newest), include_str!("table.txt"));
    assert_eq!(embedded.entries, newest.entries);
}

#[test]
fn special_ports_have_the_right_entry() {
    use Basis::{NoRow, OtherTransport};
    const ROW: Basis = Basis::Row;
    use Status::{Assigned, Deregistered, Reserved, Unassigned};
    use Transport::{Dccp, Sctp, Tcp, Udp, UdpLite};

    type Case = (
        u16,
        Transport,
        Status,
        Basis,
        Option<(u16, u16)>,
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        (0, Tcp, Reserved, ROW, None, &[]),
        (9, Sctp, Assigned, ROW, None, &["discard"]),
        (9, Dccp, Assigned, ROW, None, &["discard"]),
        (22, Tcp, Assigned, ROW, None, &["ssh"]),
        (24, Tcp, Assigned, ROW, None, &[]),
        (35, Udp, Assigned, ROW, None, &[]),
        (57, Tcp, Assigned, ROW, None, &[]),
        (59, Tcp, Assigned, ROW, None, &[]),
        (75, Udp, Assigned, ROW, None, &[]),
        (77, Tcp, Assigned, ROW, None, &[]),
        (80, Tcp, Assigned, ROW, None, &["http", "www", "www-http"]),
        (80, Dccp, Reserved, OtherTransport, None, &[]),
        (87, Tcp, Assigned, ROW, None, &[]),
        (143, Tcp, Assigned, ROW, None, &["imap"]),
        (143, Udp, Reserved, ROW, None, &[]),
        (143, UdpLite, Reserved, ROW, None, &[]),
        (230, Tcp, Reserved, ROW, Some((225, 241)), &[]),
        (270, Tcp, Reserved, ROW, None, &[]),
        (270, Udp, Assigned, ROW, None, &["gist"]),
        (465, Tcp, Assigned, ROW, None, &["urd", "submissions"]),
        (465, Udp, Assigned, ROW, None, &["igmpv3lite"]),
        (512, Tcp, Assigned, ROW, None, &["exec"]),
        (512, Udp, Assigned, ROW, None, &["comsat", "biff"]),
        (585, Tcp, Deregistered, ROW, None, &[]),
        (659, Udp, Deregistered, ROW, None, &[]),
        (716, Tcp, Reserved, OtherTransport, None, &[]),
        (716, Udp, Assigned, ROW, None, &["pana"]),
        (976, Tcp, Unassigned, ROW, Some((954, 988)), &[]),
        (976, Udp, Unassigned, ROW, Some((954, 988)), &[]),
        (976, UdpLite, Unassigned, ROW, Some((954, 988)), &[]),
        (976, Sctp, Unassigned, ROW, Some((954, 988)), &[]),
        (993, Tcp, Assigned, ROW, None, &["imaps"]),
        (993, Udp, Reserved, ROW, None, &[]),
        (1008, Tcp, Reserved, OtherTransport, None, &[]),
        (1008, Udp, Assigned, ROW, None, &[]),
        (4, Sctp, Unassigned, NoRow, None, &[]),
        (4, Tcp, Unassigned, ROW, None, &[]),
    ];
    let registry = Registry::embedded().unwrap();
    for (port, transport, status, basis, range, services) in cases {
        let entry = registry.entry(*port, *transport).unwrap();
        let names: Vec<&str> = entry.services.iter().map(|name| &**name).collect();
        assert_eq!(
            (entry.status, entry.basis, entry.range, names.as_slice()),
            (*status, *basis, *range, *services),
            "{port}/{}",
            transport.name()
        );
    }
    assert!(registry.entry(1024, Tcp).is_none());
}

#[test]
fn a_diff_names_what_changed_and_joins_neighbours() {
    let row = |ports, transport, status, names: &[&str]| Row {
        ports,
        transport,
        status,
        services: names.iter().map(|name| Printable::from(*name)).collect(),
    };
    let old =
        Registry::from_rows(vec![row(300..=310, None, Status::Unassigned, &[])], None).unwrap();
    let new = Registry::from_rows(
        vec![
            row(300..=301, None, Status::Unassigned, &[]),
            row(302..=302, Some(Transport::Tcp), Status::Assigned, &["new"]),
            row(303..=304, None, Status::Reserved, &[]),
            row(305..=310, None, Status::Unassigned, &[]),
        ],
        None,
    )
    .unwrap();
    let lines: Vec<String> = diff(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "302/tcp: unassigned -> assigned (new)",
            "302/udp,sctp,dccp: unassigned -> reserved",
            "303-304/tcp,udp,sctp,dccp: unassigned -> reserved",
        ]
    );
    assert!(diff(&new, &new).is_empty());
}
