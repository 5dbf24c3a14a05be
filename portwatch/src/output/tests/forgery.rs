//! What cannot be done to lines from outside.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, rc::Rc};

use super::{alert, written};
use crate::{
    alert::{Alert, SummaryInfo, SummaryProcess},
    model::{Printable, Severity},
    output::FormatName,
    process::{Ancestor, Process},
    tracker::Holder,
};

#[test]
fn a_name_can_forge_nothing() {
    let evil: [&[u8]; 5] = [
        b"a\n2026-11-22T21:38:00Z critical",
        b"\x1b[2J\x1b]0;title\x07",
        b"x user=nobody exe=/bin/true",
        b"\xff\xfe{\"\\",
        "\u{202e}cod.exe\u{9b}31m".as_bytes(),
    ];
    for name in evil {
        let alert = alert(name, &[name, b"-x"]);
        let text = written(FormatName::Text, false, &alert);
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
        assert!(!text.contains('\u{202e}'));
        // Fields are separated by blanks that no quote encloses.
        let fields = shlex::split(text.trim_end()).unwrap();
        assert_eq!(
            fields
                .iter()
                .filter(|field| field.starts_with("user="))
                .count(),
            1,
            "{text}"
        );
        assert_eq!(
            fields
                .iter()
                .filter(|field| field.starts_with("exe="))
                .count(),
            1,
            "{text}"
        );

        let json = written(FormatName::Json, false, &alert);
        assert_eq!(json.matches('\n').count(), 1, "{json:?}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        for text in [&value["process"]["comm"], &value["process"]["cmdline"][0]] {
            let text = text.as_str().unwrap();
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}

#[test]
fn each_name_of_a_list_is_quoted_on_its_own() {
    let mut alert = alert(b"x[1] < sshd", &[b"a b", b"c'd"]);
    alert.holders = Rc::new([7, 8].map(|pid| Holder {
        pid,
        comm: Printable::from("y[1] nc"),
        exe: None,
        user: Printable::from("root"),
        unit: None,
        container: None,
        unverified: Vec::new(),
        script: None,
    }));
    let process = Process {
        cmdline: alert.process.as_ref().unwrap().cmdline.clone(),
        ancestors: [("x[1] < sshd", 5), ("systemd", 1)]
            .map(|(name, pid)| Ancestor {
                pid,
                comm: Printable::from(name),
                exe: None,
            })
            .into(),
        ..Process::minimal(812, Printable::from("x"), 0, 0)
    };
    alert.process = Some(Rc::new(process));
    let line = written(FormatName::Text, false, &alert);
    let fields = shlex::split(&line).unwrap();
    for (key, names) in [
        ("ancestors=", &["x[1] < sshd[5]", "<", "systemd[1]"][..]),
        ("holders=", &["y[1] nc[7]", "y[1] nc[8]"]),
        ("cmdline=", &["a b", "c'd"]),
    ] {
        let value = fields.iter().find_map(|field| field.strip_prefix(key));
        assert_eq!(shlex::split(value.unwrap()).unwrap(), names, "{line}");
    }
}

#[test]
fn a_name_without_a_key_looks_like_no_field() {
    let name = "user=root";
    let mut alert = alert(name.as_bytes(), &[]);
    let process = |pid| SummaryProcess {
        pid,
        comm: Printable::from(name),
        exe: None,
        events: 9,
    };
    alert.summary = Some(SummaryInfo {
        since: alert.time,
        counts: BTreeMap::new(),
        ports: BTreeMap::new(),
        held: BTreeMap::new(),
        processes: vec![process(7), process(8)],
        bytes_in: None,
        bytes_out: None,
    });
    let line = written(FormatName::Text, false, &alert);
    let fields = shlex::split(&line).unwrap();
    let named: Vec<&str> = fields
        .iter()
        .filter_map(|field| field.strip_prefix("user"))
        .collect();
    let shown = [
        "\\u{3d}root[7]=9",
        "\\u{3d}root[8]=9;",
        "\\u{3d}root[812]",
        "=root",
    ];
    assert_eq!(named, shown, "{line}");
}

#[test]
fn a_message_looks_like_no_field() {
    let host = || Printable::from("db1");
    let detail = "cgroup /a user=root exe=/bin/true is missing";
    let line = written(
        FormatName::Text,
        false,
        &Alert::health(Severity::Warning, detail, host()),
    );
    let fields = shlex::split(&line).unwrap();
    assert!(fields.contains(&detail.to_owned()), "{fields:?}");
}
