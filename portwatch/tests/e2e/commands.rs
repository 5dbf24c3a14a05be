//! `explain`, `registry` and help.

use std::process::{Command, Stdio};

use crate::support::{Monitor, in_namespace, run};

#[test]
fn explain_prints_the_registry_entry_and_holders_in_all_namespaces() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let mut nc = Command::new("nc")
            .args(["-l", "127.0.0.1", "976"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        monitor.alerts(namespace.inode, 2);
        monitor.stop_without_more(namespace.inode);
        // In another network namespace, which finds this one through /proc only.
        let finished = in_namespace(|_| run(&["explain", "976"]));
        assert!(finished.status.success(), "{}", finished.stderr);
        let text = finished.stdout;
        for expected in [
            "Registry (IANA, 2026-08-17):".into(),
            "976/tcp      unassigned".into(),
            "954-988".into(),
            "976/udplite".into(),
            format!(
                "tcp 127.0.0.1:976 listening in network namespace {}",
                namespace.inode
            ),
            format!("by nc[{}] user root, ", nc.id()),
            ": nc -l 127.0.0.1 976".into(),
        ] {
            assert!(text.contains(&expected), "{expected:?} is not in\n{text}");
        }
        nc.kill().unwrap();
        nc.wait().unwrap();
    });
}

#[test]
fn explain_registry_and_help_print_the_requested_facts() {
    let cases: [(&[&str], &[&str]); 6] = [
        (&["explain", "443/udp"], &["443/udp      assigned to https"]),
        (
            &["explain", "716/tcp"],
            &["716/tcp      reserved", "another transport", "RFC 6335"],
        ),
        (&["explain", "8080"], &["8080 is no", "system port"]),
        (
            &["registry"],
            &["as of 2026-08-17", "tcp                 689          282"],
        ),
        (&["--help"], &["Exit codes:", "explain", "--ring-size"]),
        (&["--version"], &["portwatch 0.1.0"]),
    ];
    for (arguments, expected) in cases {
        let finished = run(arguments);
        assert!(
            finished.status.success(),
            "{arguments:?}: {}",
            finished.stderr
        );
        for expected in expected {
            assert!(
                finished.stdout.contains(expected),
                "{arguments:?} gave\n{}",
                finished.stdout
            );
        }
    }
}

#[test]
fn registry_diff_prints_changed_ports() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("newer.csv");
    // The embedded registry, except for 976.
    let table = run(&["registry", "--table"]).stdout;
    let mut csv = String::from(
        "Service Name,Port Number,Transport Protocol,Description,Assignee,Contact,\
         Registration Date,Modification Date,Reference,Service Code,\
         Unauthorized Use Reported,Assignment Notes\n",
    );
    for line in table
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
    {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let transport = if words[1] == "any" { "" } else { words[1] };
        let status = if words[2] == "deregistered" {
            "removed"
        } else {
            words[2]
        };
        for service in words
            .get(3..)
            .filter(|names| !names.is_empty())
            .unwrap_or(&[""])
        {
            csv += &format!("{service},{},{transport},{status},,,,,,,,\n", words[0]);
        }
    }
    csv += "late,976,tcp,Late,,,2027-01-02,,,,,\n";
    std::fs::write(&path, csv).unwrap();
    let finished = run(&["registry", "--diff", path.to_str().unwrap()]);
    assert_eq!(finished.stderr, "");
    assert_eq!(
        finished.stdout,
        "976/tcp: unassigned -> assigned (late)\n1 changes from 2026-08-17 to 2027-01-02\n"
    );
}
