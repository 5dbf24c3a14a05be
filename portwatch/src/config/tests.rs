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
            "only accept and connect have a peer",
        ),
        (
            "HEADpeer = \"10.0.0.1/8\"\n",
            "did you mean \"10.0.0.0/8\"?",
        ),
        ("HEADaddress = \"lo\"\n", "is not loopback, private, any"),
        ("HEADexe = \"nc\"\n", "did you mean \"**/nc\"?"),
        ("HEADexe = \"/[\"\n", "unclosed character class"),
        ("HEADuser = \"no such user\"\n", "this host has no user"),
        (
            "HEADcgroup = \"system.slice\"\n",
            "did you mean \"/system.slice\"?",
        ),
        ("HEADnetns = \"mine\"\n", "is not host, other or an inode"),
        ("HEADHEAD", "the first is in line 2"),
        ("[aggregate]\ninterval = \"soon\"\n", "is not a duration"),
        ("[aggregate]\nburst = 0\n", "burst must be at least 1"),
        ("[[rule]\n", "]"),
        (
            "[agregate]\n",
            "did you mean \"aggregate\"? (known: rule, aggregate)",
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
    let config = source.load_or_default(&default).unwrap();
    assert_eq!((config.path, config.policy.rules().len()), (None, 0));
    std::fs::write(&default, "[[rule]]\nname = \"x\"\ndecide = \"ignore\"\n").unwrap();
    let config = source.load_or_default(&default).unwrap();
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
    let text = "[aggregate]\nenabled = true\n\
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
