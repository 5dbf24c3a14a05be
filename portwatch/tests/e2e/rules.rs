//! The configuration: the recipes of docs/rules.md as they are printed there, reloads, and invalid
//! files.

use std::{
    io::Write as _,
    net::{TcpListener, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    assert_alert,
    support::{Helper, Monitor, REBIND, binary, finish, in_namespace, perl, run},
};

/// The recipe of that title in docs/rules.md.
pub fn recipe(title: &str) -> String {
    let page = include_str!("../../../docs/rules.md");
    let (_, section) = page.split_once(&format!("\n### {title}\n")).unwrap();
    let (_, block) = section.split_once("```toml\n").unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

/// A new file with that text; deleted when the directory is dropped.
pub fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("portwatch.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

/// A monitor with those rules.
fn monitor(text: &str) -> (tempfile::TempDir, Monitor) {
    let (directory, path) = file(text);
    let monitor = Monitor::start_default(&["--no-aggregate", "--config", path.to_str().unwrap()]);
    (directory, monitor)
}

fn udp(port: u16) -> String {
    format!(
        "use Socket; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         bind($s, sockaddr_in({port}, INADDR_LOOPBACK)) or die $!;"
    )
}

#[test]
fn all_recipes_are_valid() {
    let page = include_str!("../../../docs/rules.md");
    let titles: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    assert!(!titles.is_empty());
    for title in titles {
        let (_directory, path) = file(&recipe(title));
        let finished = run(&["check-config", path.to_str().unwrap()]);
        assert!(finished.status.success(), "{title}: {}", finished.stderr);
        assert!(
            finished.stdout.contains(" ports are watched\n") && finished.stderr.is_empty(),
            "{title}: {}{}",
            finished.stdout,
            finished.stderr
        );
    }
}

#[test]
fn all_example_configurations_are_valid() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let entries =
        std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory}: {error}"));
    let examples: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    assert!(!examples.is_empty(), "{directory} has no .toml file");
    for path in examples {
        // The source tree need not belong to the user of the tests.
        let (_directory, copy) = file(&std::fs::read_to_string(&path).unwrap());
        let finished = run(&["check-config", copy.to_str().unwrap()]);
        // A warning would mean that an example uses an old name.
        assert!(
            finished.status.success() && finished.stderr.is_empty(),
            "{}: {}",
            path.display(),
            finished.stderr
        );
    }
}

#[test]
fn the_nfs_recipe_ignores_clients_only() {
    in_namespace(|namespace| {
        let (_directory, monitor) = monitor(&recipe("NFS client"));
        let server = TcpListener::bind("127.0.0.1:2049").unwrap();
        perl(
            "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             bind($s, sockaddr_in(986, INADDR_LOOPBACK)) or die; \
             connect($s, sockaddr_in(2049, INADDR_LOOPBACK)) or die",
        );
        drop(server);
        // A server is still reported.
        drop(TcpListener::bind("127.0.0.1:987").unwrap());
        assert_alert!(monitor.alert(namespace.inode), { "event" => "listen", "port" => 987 });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn the_legacy_service_recipe_allows_one_program() {
    in_namespace(|namespace| {
        let (_directory, monitor) = monitor(&recipe("A legacy service on 900"));
        perl(&udp(900));
        drop(UdpSocket::bind("127.0.0.1:900").unwrap());
        for event in ["bind", "close"] {
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => event,
                "port" => 900,
                "severity" => "critical",
                "registry/status" => "assigned",
                "process/pid" => std::process::id(),
                "rule/name" => "not billing",
                "rule/reason" => "900 is for billing only",
                "rule/decision" => "critical",
            });
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn the_socket_activation_and_container_recipes_apply() {
    in_namespace(|namespace| {
        let (_directory, activation) = monitor(&recipe("Socket activation"));
        let mut service = Command::new("systemd-socket-activate")
            .args(["-l", "127.0.0.1:976", "/bin/true"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for event in ["bind", "listen"] {
            assert_alert!(activation.alert(namespace.inode), {
                "event" => event,
                "severity" => "notice",
                "rule/name" => "activated",
            });
        }
        service.kill().unwrap();
        service.wait().unwrap();
        drop(activation);

        // Alerts from other namespaces are ignored, so the end of the reload is the sentinel.
        let (_directory, mut containers) = monitor(&recipe("A container host"));
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        containers.signal(Signal::SIGHUP);
        assert!(containers.log_line().contains("reloaded"));
        containers.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_thousand_reloads_under_load_lose_no_event() {
    const RELOADS: usize = 1000;
    in_namespace(|namespace| {
        let (_directory, path) = file("");
        let arguments = ["--config", path.to_str().unwrap(), "--no-aggregate"];
        let mut monitor =
            Monitor::start_default(&[&arguments[..], &["--ring-size", "67108864"]].concat());
        let load = format!(
            "{REBIND} use Fcntl; $| = 1; print \"ready\\n\"; my ($count, $in) = (0, ''); \
             fcntl(STDIN, F_SETFL, O_NONBLOCK); \
             until (sysread(STDIN, $in, 1)) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
             rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); close $s; $count++; \
             select(undef, undef, undef, 0.002) }} print \"$count\\n\""
        );
        let mut load = Helper::start(Command::new("perl").args(["-e", &load]));
        load.wait_for("ready");
        let texts = [
            "",
            "[[rule]]\nname = \"x\"\ndecide = \"critical\"\nport = [22, 976]\n",
        ];
        for (number, text) in (0..RELOADS).zip(texts.iter().cycle()) {
            std::fs::write(&path, text).unwrap();
            monitor.signal(Signal::SIGHUP);
            let line = monitor.log_line();
            assert!(line.contains("reloaded"), "{number}: {line}");
        }
        load.resume();
        let count: usize = load.line().parse().unwrap();
        load.wait();
        assert!(count > 100, "{count}");
        for number in 0..count {
            for event in ["bind", "close"] {
                let alert = monitor.alert(namespace.inode);
                assert_eq!(alert["event"], event, "{number} of {count}: {alert}");
            }
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_failed_reload_keeps_the_previous_rules() {
    in_namespace(|namespace| {
        let good = "[[rule]]\nname = \"x\"\ndecide = \"critical\"\nport = 976\n";
        let (_directory, path) = file(good);
        let mut monitor =
            Monitor::start_default(&["--no-aggregate", "--config", path.to_str().unwrap()]);
        std::fs::write(
            &path,
            "[[rule]]\nname = \"x\"\ndecide = \"ignore\"\nprot = 976\n",
        )
        .unwrap();
        monitor.signal(Signal::SIGHUP);
        let problem = "portwatch.toml:4:1: unknown key \"prot\"; did you mean \"port\"?";
        let line = monitor.log_line();
        assert!(
            line.contains("reload failed, keeping the previous rules: ") && line.contains(problem),
            "{line}"
        );
        let health = monitor.health();
        assert!(
            health["detail"].as_str().unwrap().contains(problem),
            "{health}"
        );
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        assert_alert!(monitor.alert(namespace.inode), { "severity" => "critical", "rule/name" => "x" });
        monitor.alert(namespace.inode);

        // A valid file is loaded again, and existing sockets that it watches are reported.
        let _assigned = UdpSocket::bind("127.0.0.1:22").unwrap();
        std::fs::write(&path, good.replace("976", "22")).unwrap();
        monitor.signal(Signal::SIGHUP);
        assert!(monitor.log_line().contains("reloaded"));
        assert_alert!(monitor.alert(namespace.inode), {
            "origin" => "snapshot",
            "port" => 22,
            "rule/name" => "x",
        });
        monitor.stop_with(Signal::SIGTERM, namespace.inode);
    });
}

#[test]
fn an_invalid_file_is_rejected_with_line_and_column() {
    let (_directory, path) = file("[[rule]]\nname = \"x\"\ndecide = \"ignroe\"\n");
    let path = path.to_str().unwrap();
    for arguments in [
        &["check-config", path][..],
        &["run", "--config", path],
        &["list", "--config", path],
        &["explain-alert", "--config", path],
    ] {
        let finished = run(arguments);
        assert_eq!(
            finished.status.code(),
            Some(5),
            "{arguments:?}: {}",
            finished.stderr
        );
        let problem =
            format!("portwatch: {path}:3:10: unknown value \"ignroe\"; did you mean \"ignore\"?");
        assert!(finished.stderr.starts_with(&problem), "{}", finished.stderr);
    }
    let missing = run(&["check-config", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(5));
    assert!(
        missing.stderr.contains("/no/such/file: No such file"),
        "{}",
        missing.stderr
    );
}

#[test]
fn explain_alert_names_the_deciding_rule() {
    in_namespace(|namespace| {
        let plain = Monitor::start(&["--all"]);
        drop(UdpSocket::bind("127.0.0.1:900").unwrap());
        let bind: Value = plain.alert(namespace.inode);
        drop(plain);
        let (_directory, path) = file(&recipe("A legacy service on 900"));
        let explain = |input: &str| {
            let mut child = Command::new(binary())
                .args(["explain-alert", "--config", path.to_str().unwrap()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(input.as_bytes())
                .unwrap();
            let output = child.wait_with_output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (
                output.status.code(),
                text(output.stdout),
                text(output.stderr),
            )
        };
        let mut billing = bind.clone();
        billing["process"]["exe"] = "/usr/bin/perl".into();
        let mut other = bind.clone();
        other["port"] = 955.into();
        other["registry"]["status"] = "unassigned".into();
        let (code, text, _) = explain(&format!("{bind}\n{billing}\n{other}\n"));
        assert_eq!(code, Some(0));
        assert_eq!(
            text,
            "rule 2, \"not billing\", decides critical (900 is for billing only)\n\
             rule 1, \"billing\", decides ignore (in-house, since before the registry)\n\
             no rule matches: warning by default\n"
        );
        let (code, _, problem) = explain(&format!("{bind}\n{{\"event\":\"loss\"}}\n"));
        assert_eq!(code, Some(5));
        assert!(
            problem.contains("stdin:2: ") && problem.contains("alert about a socket"),
            "{problem}"
        );
    });
    let finished = finish(Command::new(binary()).args(["explain-alert", "--config", "/dev/null"]));
    assert_eq!(
        (finished.status.code(), finished.stdout.as_str()),
        (Some(0), "")
    );
}
