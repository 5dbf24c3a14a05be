//! `explain` and `registry`, as a person calls them.

use std::process::{Command, Stdio};

use crate::support::{Agent, in_namespace, run};

#[test]
fn explain_names_the_registrys_word_and_the_holder_in_any_namespace() {
    in_namespace(|namespace| {
        let agent = Agent::start(&[]);
        let mut nc = Command::new("nc")
            .args(["-l", "127.0.0.1", "976"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        agent.alerts(namespace.inode, 2);
        agent.stop(namespace.inode);
        // Run from a namespace beside, which only knows of this one through /proc.
        let finished = in_namespace(|_| run(&["explain", "976"]));
        assert!(finished.status.success(), "{}", finished.stderr);
        let text = finished.stdout;
        for expected in [
            "Registry (IANA, 2026-08-17):".into(),
            "976/tcp      unassigned, as 954-988 (by the registry's row)".into(),
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
fn explain_and_registry_answer_what_is_asked() {
    let cases: [(&[&str], &[&str]); 6] = [
        (&["explain", "443/udp"], &["443/udp      assigned to https"]),
        (
            &["explain", "716/tcp"],
            &["reserved (no row; another transport has the port, RFC 6335"],
        ),
        (&["explain", "8080"], &["8080 is no system port"]),
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
fn a_newer_registry_is_compared() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("newer.csv");
    // Everything as embedded but 976.
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
