//! What reads input from outside, as functions of bytes that panic when a promise about their result is
//! broken: the targets of `cargo xtask fuzz`, which `cargo test` runs over the corpus too.

use std::{path::Path, rc::Rc};

use crate::{
    alert::Alert,
    commands::explain_alert::explain_alerts,
    config::Config,
    inventory,
    linux::{
        mountinfo,
        stat::{Stat, Status},
    },
    model::{Printable, Transport},
    output::FormatName,
    process::{self, Ancestor, Process},
    registry::Registry,
    sensor::Records,
    util::{escape_lines, escape_to},
};

/// A name and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets. Each has a directory of its name in fuzz/corpus and a file in fuzz/fuzz_targets.
pub const TARGETS: [Target; 8] = [
    ("rules", rules),
    ("registry", registry),
    ("record", record),
    ("explain_alert", explain_alert),
    ("text_line", text_line),
    ("sock_diag", sock_diag),
    ("proc", proc),
    ("escape", escape),
];

/// A rules file: an error is one place and printable, and no policy takes part of the ports twice.
///
/// # Panics
///
/// When a promise is broken.
pub fn rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text, Path::new("input")) {
        Ok(config) => {
            let Ok(registry) = Registry::embedded() else {
                return;
            };
            let watched: Vec<_> = config.watched(&registry, &Transport::ALL).collect();
            assert!(watched.is_sorted_by(|a, b| (a.0, place(a.1)) < (b.0, place(b.1))));
            let deny = config.deny_rules(&registry);
            assert!(deny.rules.len() <= portwatch_common::MAX_DENY_RULES as usize);
            // Every deadline that is made of these exists.
            let now = std::time::Instant::now();
            let settings = config.aggregate;
            for duration in [
                settings.interval,
                settings.idle_timeout,
                settings.bind_delay,
            ] {
                assert!(now.checked_add(duration).is_some(), "{duration:?}");
            }
        }
        Err(error) => assert_printable(&escape_lines(error.to_string())),
    }
}

fn place(transport: Transport) -> Option<usize> {
    Transport::ALL.iter().position(|one| *one == transport)
}

/// A registry file: every port has an entry on every transport, and its changes are printable.
///
/// # Panics
///
/// When a promise is broken.
pub fn registry(bytes: &[u8]) {
    if let Ok(registry) = Registry::parse_csv(bytes) {
        for transport in Transport::ALL {
            assert_eq!(registry.counts(transport).iter().sum::<usize>(), 1024);
        }
        assert!(registry.entry(1024, Transport::Tcp).is_none());
        assert!(crate::registry::diff(&registry, &registry).is_empty());
        if let Ok(embedded) = Registry::embedded() {
            for change in crate::registry::diff(&embedded, &registry) {
                assert_printable(&change.to_string());
            }
        }
    }
}

/// Records of the ring buffer, each with its length in two bytes before it.
///
/// # Panics
///
/// When a promise is broken.
pub fn record(bytes: &[u8]) {
    let mut records = Records::default();
    let mut rest = bytes;
    while let Some((length, tail)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(tail.len());
        let (record, tail) = tail.split_at(length);
        if let Some(event) = records.decode(record) {
            assert!(event.task.is_none_or(|task| task.comm.len() <= 16));
        }
        rest = tail;
    }
}

/// The input of [`record`] that the BPF programs of this version would write.
#[must_use]
pub fn records() -> Vec<u8> {
    let records = Records::default();
    let with_length = |record: &[u8]| [&(record.len() as u16).to_le_bytes(), record].concat();
    records.bytes().map(with_length).concat()
}

/// Alerts on stdin of `explain-alert`: a line for each, or an error with the line's number.
///
/// # Panics
///
/// When a promise is broken.
pub fn explain_alert(bytes: &[u8]) {
    const RULES: &str = "[[rule]]\nname = \"a\"\ndecide = \"notice\"\nexe = \"/{a,b}*\"\n\
        [[rule]]\nname = \"b\"\ndecide = \"deny\"\nport = \"900-1023\"\n";
    let Ok(config) = Config::parse(RULES, Path::new("rules")) else {
        return;
    };
    match explain_alerts(&config.policy, bytes) {
        Ok(text) => assert_printable(&text),
        Err(error) => assert_printable(&escape_lines(format!("{error:#}"))),
    }
}

/// Names in an alert, separated by NUL: the text line is one line, its fields are the monitor's, and each
/// name comes back as it is.
///
/// # Panics
///
/// When a promise is broken.
pub fn text_line(bytes: &[u8]) {
    thread_local! {
        /// It takes longer to make than to write.
        static ALERT: Option<Alert> = super::decided()
            .ok()
            .map(|decided| Alert::of_event(decided, None, Printable::from("host")));
    }
    let Some(mut alert) = ALERT.with(Clone::clone) else {
        return;
    };
    // So short that even with quotes around quotes nothing of it is cut.
    let limited = |name| Printable::limited(name, 24);
    let mut names = bytes.split(|byte| *byte == 0).map(limited);
    let mut name = || names.next().unwrap_or_else(|| Printable::from("x"));
    let process = Process {
        exe: Some(name()),
        user: Some(name()),
        unit: Some(name()),
        cmdline: Some(vec![name(), name()]),
        ancestors: [1, 2].map(|pid| ancestor(pid, name())).into(),
        ..Process::minimal(812, name(), 0, 0)
    };
    alert.holders = Rc::new([]);
    alert.process = Some(Rc::new(process.clone()));
    let mut line = Vec::new();
    FormatName::Text.format(false).write(&alert, &mut line);
    let text = String::from_utf8_lossy(&line);
    assert_eq!(text.matches('\n').count(), 1);
    assert_printable(&text);
    let fields = split(&text);
    let value = |key: &str| {
        let mut values = fields.iter().filter_map(|field| field.strip_prefix(key));
        let value = values.next().unwrap_or_default().to_owned();
        (value, values.next().is_none())
    };
    let plain = |name: &Option<Printable>| name.as_deref().unwrap_or_default().to_owned();
    assert_eq!(value("exe="), (plain(&process.exe), true));
    assert_eq!(value("user="), (plain(&process.user), true));
    assert_eq!(value("unit="), (plain(&process.unit), true));
    let words: Vec<_> = process
        .cmdline
        .iter()
        .flatten()
        .map(|one| one.to_string())
        .collect();
    assert_eq!(split(&value("cmdline=").0), words);
    let chain = process.ancestors.iter();
    let chain: Vec<_> = chain
        .map(|one| format!("{}[{}]", one.comm, one.pid))
        .collect();
    let [first, second] = &*chain else { return };
    assert_eq!(split(&value("ancestors=").0), [first, "<", second]);

    let mut json = Vec::new();
    FormatName::Json.format(false).write(&alert, &mut json);
    let parsed: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    assert_eq!(parsed["process"]["exe"].as_str(), process.exe.as_deref());
}

fn ancestor(pid: u32, comm: Printable) -> Ancestor {
    Ancestor {
        pid,
        comm,
        exe: None,
    }
}

fn split(text: &str) -> Vec<String> {
    shlex::split(text).unwrap_or_default()
}

/// A packet of sock_diag(7).
///
/// # Panics
///
/// When a promise is broken.
pub fn sock_diag(bytes: &[u8]) {
    if let Ok(sockets) = inventory::parse_packet(bytes) {
        assert!(sockets.iter().all(|socket| socket.inode != 0));
    }
}

/// The files of /proc, and passwd(5).
///
/// # Panics
///
/// When a promise is broken.
pub fn proc(bytes: &[u8]) {
    drop(Stat::parse(bytes));
    let _: Option<Status> = Status::parse(bytes);
    for line in bytes.split(|byte| *byte == b'\n') {
        drop(mountinfo::parse(line));
    }
    for name in process::parse_names(bytes) {
        assert_printable(&name);
    }
    let text = String::from_utf8_lossy(bytes);
    assert!(inventory::parse_lines(&text) <= text.lines().count());
}

/// Any text: what is escaped is printable, and escaping it again changes nothing.
///
/// # Panics
///
/// When a promise is broken.
pub fn escape(bytes: &[u8]) {
    let mut text = String::new();
    escape_to(&mut text, bytes, &[]);
    assert_printable(&text);
    let mut again = String::new();
    escape_to(&mut again, text.as_bytes(), &[]);
    assert_eq!(again, text);
}

fn assert_printable(text: &str) {
    let control = text.chars().find(|one| one.is_control() && *one != '\n');
    assert_eq!(control, None, "{text:?}");
    let hidden = ['\u{202e}', '\u{2028}', '\u{200b}', '\u{2800}', '\u{fe0f}'];
    assert!(!text.contains(hidden), "{text:?}");
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::PathBuf};

    use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestRunner};

    use super::*;

    /// Inputs that each target is given, beside the corpus itself.
    const MUTATED: u32 = 400;

    /// Pieces that parsers treat in their own ways.
    const PIECES: [&[u8]; 24] = [
        b"\0",
        b"\n",
        b"\"",
        b"'",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b"[[",
        b"=",
        b",",
        b".",
        b"-",
        b"*",
        b"0",
        b"9223372036854775808",
        b"-1",
        b"\xff",
        b"\xff\xff\xff\x7f",
        b"\x1b[2J",
        "\u{202e}".as_bytes(),
        "\u{301}".as_bytes(),
        b"#",
    ];

    fn fuzz_directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
    }

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let directory = fuzz_directory().join("corpus").join(name);
        let files = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
        files.sort();
        let mut inputs: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        if name == "record" {
            inputs.push(records());
        }
        inputs
    }

    /// One change of an input: where, how much of it is cut out, what is put there and how often.
    fn edit() -> impl Strategy<Value = (Index, usize, Vec<u8>, usize)> {
        let piece = prop_oneof![
            (0..PIECES.len()).prop_map(|index| PIECES[index].to_vec()),
            vec(any::<u8>(), 0..5),
        ];
        let times = prop_oneof![9 => Just(1_usize), 1 => 1_usize..300];
        (any::<Index>(), 0_usize..9, piece, times)
    }

    #[test]
    fn every_target_holds_on_its_corpus_and_on_what_is_near_it() {
        for (name, target) in TARGETS {
            let corpus = corpus(name);
            assert!(!corpus.is_empty(), "fuzz/corpus/{name} is empty");
            for input in &corpus {
                target(input);
            }
            let inputs = (any::<Index>(), vec(edit(), 1..8));
            let mut runner = TestRunner::new(ProptestConfig {
                cases: MUTATED,
                failure_persistence: None,
                ..ProptestConfig::default()
            });
            let result = runner.run(&inputs, |(input, edits)| {
                let mut bytes = input.get(&corpus).clone();
                for (place, cut, piece, times) in edits {
                    let start = place.index(bytes.len() + 1);
                    let end = (start + cut).min(bytes.len());
                    bytes.splice(start..end, piece.repeat(times));
                }
                target(&bytes);
                Ok(())
            });
            assert!(result.is_ok(), "{name}: {}", result.unwrap_err());
        }
    }

    #[test]
    fn every_target_is_a_program_and_has_a_corpus() {
        let names: BTreeSet<String> = TARGETS.map(|(name, _)| name.to_owned()).into();
        let files = fs::read_dir(fuzz_directory().join("fuzz_targets")).unwrap();
        let programs = files.flatten().map(|file| {
            let path = file.path();
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        });
        assert_eq!(programs.collect::<BTreeSet<_>>(), names);
        let manifest = fs::read_to_string(fuzz_directory().join("Cargo.toml")).unwrap();
        for name in names {
            let program = fuzz_directory()
                .join("fuzz_targets")
                .join(format!("{name}.rs"));
            let call = format!("portwatch::testing::fuzz::{name}(bytes)");
            assert!(
                fs::read_to_string(program).unwrap().contains(&call),
                "{name}"
            );
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
        }
    }
}
