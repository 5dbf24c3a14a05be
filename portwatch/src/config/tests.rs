use std::time::Duration;

use super::*;

#[test]
fn a_malformed_file_is_rejected_with_place_and_suggestion() {
    let head = "[[rule]]\nname = \"a\"\ndecide = \"ignore\"\n";
    let cases = [
        ("[[rule]]\nname = \"a\"\n", "missing field"),
        ("[[rule]]\ndecide = \"ignore\"\n", "missing field"),
        (
            "[[rule]]\nname = \"a\"\ndecide = \"ignored\"\n",
            "did you mean \"ignore\"?",
        ),
        ("prot = 3\n", "unknown key \"prot\""),
        ("HEADprot = 3\n", "did you mean \"port\"?"),
        ("HEADport = \"abc\"\n", "\"abc\" is not a port"),
        ("HEADport = 8080\n", "8080 is not a system port"),
        ("HEADport = \"988-954\"\n", "did you mean \"954-988\"?"),
        ("HEADport = []\n", "an empty list never matches"),
        ("HEADport = true\n", "invalid type"),
        ("HEADtransport = \"upd\"\n", "did you mean \"udp\"?"),
        ("HEADstatus = \"free\"\n", "unknown status \"free\""),
        ("HEADevent = \"listne\"\n", "did you mean \"listen\"?"),
        (
            "HEADevent = \"bind\"\npeer = \"10.0.0.0/8\"\n",
            "only accept, connect, session and receive have a peer",
        ),
        (
            "HEADpeer = \"10.0.0.1/8\"\n",
            "did you mean \"10.0.0.0/8\"?",
        ),
        ("HEADaddress = \"lo\"\n", "is not loopback, private, any"),
        ("HEADexe = \"nc\"\n", "did you mean \"**/nc\"?"),
        ("HEADexe = \"/[\"\n", "unclosed character class"),
        ("HEADexe = \"/a}\"\n", "unopened alternate group"),
        ("HEADuser = \"no such user\"\n", "this host has no user"),
        (
            "HEADcgroup = \"system.slice\"\n",
            "did you mean \"/system.slice\"?",
        ),
        ("HEADnetns = \"mine\"\n", "is not host, other or an inode"),
        ("HEADHEAD", "the first is in line 2"),
        ("[aggregate]\ninterval = \"soon\"\n", "is not a duration"),
        ("[aggregate]\nburst = 0\n", "burst must be at least 1"),
        (
            "[aggregate]\nburst = 1000001\n",
            "burst must be at most 1000000",
        ),
        ("[aggregate]\nburst = 4294967296\n", "invalid value"),
        ("[aggregate]\nburst = 99999999999999999999\n", "integer"),
        ("HEADport = 99999999999999999999\n", "integer"),
        ("HEADport = -9223372036854775808\n", "is not a port"),
        ("HEADuser = 4294967296\n", "this host has no user"),
        (
            "HEADnetns = \"18446744073709551616\"\n",
            "is not host, other or an inode",
        ),
        ("[[rule]\n", "]"),
        (
            "[agregate]\n",
            "did you mean \"aggregate\"? (known: rule, aggregate, receive)",
        ),
        ("[aggregate]\ninterval = \"-1s\"\n", "is negative"),
        (
            "[collapse]\n[aggregate]\n",
            "[aggregate] is also given by its old name, [collapse], in line 1",
        ),
        (
            "[aggregate]\npause = \"1s\"\nidle_timeout = \"1s\"\n",
            "idle_timeout is also given by its old name, pause, in line 2",
        ),
        (
            "[aggregate]\ninterval = \"9223372036854775807s\"\n",
            "interval must be between 100ms and 86400s",
        ),
        (
            "[aggregate]\ninterval = \"0s\"\n",
            "interval must be between 100ms and 86400s",
        ),
        (
            "[aggregate]\nidle_timeout = \"2 days\"\n",
            "is not a duration",
        ),
        (
            "[aggregate]\nidle_timeout = \"48h\"\n",
            "idle_timeout must be between 10ms and 86400s",
        ),
        (
            "[aggregate]\nbind_delay = \"1001ms\"\n",
            "bind_delay must be between 0ns and 1s",
        ),
        (
            "[collapse]\nhold = \"9223372036854775807s\"\n",
            "bind_delay must be between 0ns and 1s",
        ),
        (
            "[[rule]]\nname = \"a\"\ndecide = \"deny\"\nexe = \"/x\"\n",
            "denies by exe",
        ),
        (
            "[[rule]]\nname = \"a\"\ndecide = \"deny\"\nevent = \"bind\"\n",
            "leave out event",
        ),
        (
            "HEADexe = \"/x\"\n[[rule]]\nname = \"b\"\ndecide = \"deny\"\n",
            "stands before \"b\"",
        ),
        (
            "[[rule]]\nname = \"a\"\ndecide = \"deny\"\ncgroup = \"/a/*\"\n",
            "one path from the root",
        ),
    ];
    for (text, expected) in cases {
        let text = text.replace("HEAD", head);
        let (span, problem) = file::parse(&text).expect_err(&text);
        assert!(problem.contains(expected), "{text}: {problem}");
        assert!(span.start <= text.len(), "{text}: {span:?}");
    }
}

#[test]
fn an_error_prints_the_place_and_the_line_with_the_place_marked() {
    let cases = [
        (
            "[[rule]]\nname = \"x\"\ndecide = \"ignroe\"\n",
            "f.toml:3:10: unknown value \"ignroe\"; did you mean \"ignore\"? \
             (known: ignore, notice, warning, critical, deny)\n  \
             decide = \"ignroe\"\n           ^^^^^^^^",
        ),
        // A column is a character, and a tab is as wide as the space above the caret.
        (
            "[[rule]]\nname = \"\u{e9}\"\ndecide = \"deny\"\n\texe\t= \"/x\"\n",
            "f.toml:4:8: rule \"\u{e9}\" denies by exe, which is unknown at a bind: deny can depend \
             on port, transport, status, user and cgroup\n   exe = \"/x\"\n         ^^^^",
        ),
        // Nothing in the line acts on the terminal.
        (
            "a = 1 # \u{1b}[2J\n",
            "f.toml:1:9: invalid comment character, expected printable characters\n  \
             a = 1 #  [2J\n          ^",
        ),
        // The caret for the end of the file is behind its last line.
        (
            "[aggregate",
            "f.toml:1:11: unclosed table, expected \"]\"\n  [aggregate\n            ^",
        ),
    ];
    for (text, expected) in cases {
        let error = Config::parse(text, Path::new("f.toml")).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn old_names_are_read_with_a_warning() {
    let old = "[collapse]\nburst = 3\npause = \"2s\"\nhold = \"3ms\"\n";
    let new = "[aggregate]\nburst = 3\nidle_timeout = \"2s\"\nbind_delay = \"3ms\"\n";
    let [old, new] = [old, new].map(|text| Config::parse(text, Path::new("f.toml")).unwrap());
    assert_eq!(
        old.warnings,
        [
            "f.toml:1: [collapse] is now [aggregate]",
            "f.toml:3: pause is now idle_timeout",
            "f.toml:4: hold is now bind_delay",
        ]
    );
    assert!(new.warnings.is_empty());
    let expected = Settings {
        burst: 3,
        idle_timeout: Duration::from_secs(2),
        bind_delay: Duration::from_millis(3),
        ..Settings::default()
    };
    assert_eq!((old.aggregate, new.aggregate), (expected, expected));
}

#[test]
fn the_default_file_is_read_once_it_exists_and_a_named_one_must_exist() {
    let directory = tempfile::tempdir().unwrap();
    let default = directory.path().join("portwatch.toml");
    let source = Source::default();
    let config = source.load_or_default(&default, Allowed::File).unwrap();
    assert_eq!((config.path, config.policy.rules().len()), (None, 0));
    std::fs::write(&default, "[[rule]]\nname = \"x\"\ndecide = \"ignore\"\n").unwrap();
    let config = source.load_or_default(&default, Allowed::File).unwrap();
    assert_eq!(config.policy.rules().len(), 1);
    assert_eq!(config.path, Some(default));

    let missing = directory.path().join("missing.toml");
    let named = Source {
        path: Some(missing.clone()),
        ..Source::default()
    };
    let error = anyhow::Error::from(named.load().unwrap_err());
    let expected = format!(
        "cannot read {}: No such file or directory (os error 2)",
        missing.display()
    );
    assert_eq!(format!("{error:#}"), expected);
}

#[test]
fn the_command_line_overrides_the_file_every_time_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("portwatch.toml");
    let text = "[aggregate]\nenabled = true\n[receive]\nmax_rate = 5\n\
                [[rule]]\nname = \"x\"\ndecide = \"deny\"\nport = 976\n";
    std::fs::write(&path, text).unwrap();
    let registry = Registry::embedded().unwrap();
    let cases = [
        (Overrides::default(), DefaultScope::NotAssigned, true, true),
        (
            Overrides {
                all: true,
                dry_run: true,
                no_aggregate: true,
                no_receive: true,
                sessions: true,
            },
            DefaultScope::All,
            false,
            false,
        ),
    ];
    for (overrides, scope, denies, aggregates) in cases {
        let source = Source {
            path: Some(path.clone()),
            overrides,
        };
        for config in [source.load().unwrap(), source.load().unwrap()] {
            assert_eq!(config.scope, scope);
            assert_eq!(config.aggregate.enabled, aggregates);
            assert_eq!(config.receive.enabled, aggregates);
            assert_eq!(config.receive.max_rate, 5);
            assert_eq!(!config.deny_rules(&registry).rules.is_empty(), denies);
            let watched = config.watched(&registry, &[Transport::Tcp]).count();
            assert_eq!(watched == 1023, scope == DefaultScope::All, "{watched}");
        }
    }
}

#[test]
fn each_key_takes_one_value_or_a_list() {
    let one = "port = 976\ntransport = \"tcp\"\nstatus = \"reserved\"\nevent = \"accept\"\n\
               address = \"any\"\npeer = \"10.0.0.1\"\nexe = \"/x\"\nuser = 0\nunit = \"x.service\"\n\
               container = true\ncgroup = \"/x\"\nnetns = 5\n";
    let list = "port = [900, \"954-988\"]\ntransport = [\"tcp\", \"udp\"]\nstatus = [\"reserved\"]\n\
                event = [\"accept\", \"connect\"]\naddress = [\"any\", \"10.0.0.0/8\"]\n\
                peer = [\"10.0.0.1\"]\nexe = [\"/x\", \"**/y\"]\nuser = [\"root\", 1]\n\
                unit = [\"x.*\"]\ncontainer = false\ncgroup = [\"/x\"]\nnetns = [\"host\", 5]\n";
    for conditions in [one, list] {
        let text = format!("[[rule]]\nname = \"x\"\ndecide = \"ignore\"\n{conditions}");
        let contents = file::parse(&text).unwrap();
        let [rule] = contents.policy.rules() else {
            panic!("{text}")
        };
        let keys: Vec<_> = rule.conditions.iter().map(|one| one.key()).collect();
        let expected: Vec<_> = conditions
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(keys, expected);
    }
}

/// A file with one rule that has these further lines.
fn with(lines: &str) -> String {
    format!("[[rule]]\nname = \"a\"\ndecide = \"ignore\"\n{lines}\n")
}

#[test]
fn nesting_of_any_kind_is_an_error_and_not_the_end_of_the_process() {
    for depth in [9, 200, 5_000, 100_000] {
        let repeat = |open: &str, middle: &str, close: &str| {
            format!("{}{middle}{}", open.repeat(depth), close.repeat(depth))
        };
        let texts = [
            with(&format!("exe = \"/{}\"", repeat("{a,", "", "}"))),
            with(&format!("unit = '{}'", repeat("{", "", "}"))),
            with(&format!("cgroup = \"/{}", repeat("{", "", ""))),
            with(&format!("port = {}", repeat("{a = ", "1", "}"))),
            with(&format!("port = {}", repeat("{", "", ""))),
            with(&format!("x = {}", repeat("[{a = ", "1", "}]"))),
            format!("rule = {}", repeat("[", "", "]")),
            format!("{}a = 1", repeat("a.", "", "")),
            format!("[{}a]", repeat("a.", "", "")),
            format!("[[{}a]]", repeat("a.", "", "")),
        ];
        for text in texts {
            assert!(
                Config::parse(&text, Path::new("f")).is_err(),
                "{depth}: {text:.60}"
            );
        }
    }
    let deep = with("exe = \"/{a,{b,{c,{d,{e,{f,{g,h}}}}}}}\"");
    assert!(Config::parse(&deep, Path::new("f")).is_ok());
}

#[test]
fn patterns_that_would_be_huge_are_an_error() {
    for pattern in ["*a", "?", "[a-z]", "**/", "{a,b}", "\\\\a", "\u{e9}*"] {
        let text = with(&format!("exe = \"/{}\"", pattern.repeat(5_000)));
        let error = Config::parse(&text, Path::new("f"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("at most 4096 bytes"), "{error:.200}");
        let text = with(&format!("exe = \"/{}\"", pattern.repeat(500)));
        assert!(Config::parse(&text, Path::new("f")).is_ok(), "{pattern}");
    }
}

#[test]
fn a_file_has_a_bounded_number_of_everything() {
    let rules = |count: usize, lines: &str| -> String {
        let rule = |index| format!("[[rule]]\nname = \"{index}\"\ndecide = \"notice\"\n{lines}\n");
        (0..count).map(rule).collect()
    };
    let ports = |count| format!("port = [{}]", "7,".repeat(count));
    for (text, problem) in [
        (rules(10_000, "port = 7"), None),
        (
            rules(10_001, "port = 7"),
            Some("10001 rules; a file has at most 10000"),
        ),
        (rules(1_000, "exe = \"/a*\""), None),
        (
            rules(1_001, "exe = \"/a*\""),
            Some("at most 1000 values with wildcards"),
        ),
        (with(&ports(1024)), None),
        (with(&ports(1025)), Some("a list has at most 1024 values")),
        (
            with(&format!("reason = \"{}\"", "r".repeat(1025))),
            Some("reason has more than 1024"),
        ),
        (
            format!(
                "[[rule]]\nname = \"{}\"\ndecide = \"notice\"",
                "n".repeat(257)
            ),
            Some("name has more than 256 bytes"),
        ),
    ] {
        match (Config::parse(&text, Path::new("f")), problem) {
            (Ok(_), None) => {}
            (Err(error), Some(problem)) => assert!(error.to_string().contains(problem), "{error}"),
            (other, _) => panic!("{problem:?}: {other:?}"),
        }
    }
}

#[test]
fn what_is_cited_of_a_long_or_hostile_line_is_a_readable_part() {
    let hostile = "\u{202e}\u{9b}\u{2800}\u{e0041}";
    let text = format!("x = \"{hostile}{}\" y", "a".repeat(100_000));
    let error = Config::parse(&text, Path::new("f"))
        .unwrap_err()
        .to_string();
    let cited: Vec<&str> = error.lines().skip(1).collect();
    assert!(
        cited.len() == 2 && cited.iter().all(|line| line.chars().count() <= 162),
        "{error:.500}"
    );
    assert!(!error.contains(|one| hostile.contains(one)), "{error:?}");
    assert!(cited[1].ends_with('^'), "{}", cited[1]);
}

#[test]
fn a_pipe_is_read_at_start_only() {
    use std::{io::Write as _, os::fd::AsRawFd as _};

    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(with("").as_bytes()).unwrap();
    drop(writer);
    let source = Source {
        path: Some(format!("/dev/fd/{}", reader.as_raw_fd()).into()),
        ..Source::default()
    };
    assert_eq!(source.load().unwrap().policy.rules().len(), 1);
    let error = source.reload().unwrap_err().to_string();
    assert!(
        error.contains("it is a pipe, not a regular file"),
        "{error}"
    );
}
