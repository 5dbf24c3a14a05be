//! The operator's rules: the recipes of docs/rules.md, as they stand there, and what is wrong with a
//! file.

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
    support::{Agent, Dialogue, TAKE, binary, finish, in_namespace, perl, run},
};

/// The recipe of that title in docs/rules.md.
pub fn recipe(title: &str) -> String {
    let page = include_str!("../../../docs/rules.md");
    let (_, section) = page.split_once(&format!("\n### {title}\n")).unwrap();
    let (_, block) = section.split_once("```toml\n").unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

/// A file with that text, in a folder that goes with it.
pub fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portwatch.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// An agent with those rules.
fn agent(text: &str) -> (tempfile::TempDir, Agent) {
    let (folder, path) = file(text);
    let agent = Agent::start_quiet(&["--no-collapse", "--config", path.to_str().unwrap()]);
    (folder, agent)
}

fn udp(port: u16) -> String {
    format!(
        "use Socket; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         bind($s, sockaddr_in({port}, INADDR_LOOPBACK)) or die $!;"
    )
}

#[test]
fn every_recipe_can_be_used() {
    let page = include_str!("../../../docs/rules.md");
    let titles: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    assert_eq!(titles.len(), 5);
    for title in titles {
        let (_folder, path) = file(&recipe(title));
        let finished = run(&["check-config", path.to_str().unwrap()]);
        assert!(finished.status.success(), "{title}: {}", finished.stderr);
        assert!(
            finished.stdout.contains(" rules\n"),
            "{title}: {}",
            finished.stdout
        );
    }
}

#[test]
fn an_nfs_client_is_not_told() {
    in_namespace(|namespace| {
        let (_folder, agent) = agent(&recipe("NFS client"));
        let server = TcpListener::bind("127.0.0.1:2049").unwrap();
        perl(
            "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             bind($s, sockaddr_in(986, INADDR_LOOPBACK)) or die; \
             connect($s, sockaddr_in(2049, INADDR_LOOPBACK)) or die",
        );
        drop(server);
        // A server there still is.
        drop(TcpListener::bind("127.0.0.1:987").unwrap());
        assert_alert!(agent.alert(namespace.inode), { "event" => "listen", "port" => 987 });
        assert!(agent.stop(namespace.inode).is_empty());
    });
}

#[test]
fn an_assigned_port_is_for_one_program_only() {
    in_namespace(|namespace| {
        let (_folder, agent) = agent(&recipe("A legacy service on 900"));
        perl(&udp(900));
        drop(UdpSocket::bind("127.0.0.1:900").unwrap());
        for event in ["bind", "close"] {
            assert_alert!(agent.alert(namespace.inode), {
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
        assert!(agent.stop(namespace.inode).is_empty());
    });
}

#[test]
fn a_service_manager_and_a_container_are_told_as_the_rules_say() {
    in_namespace(|namespace| {
        let (_folder, activation) = agent(&recipe("Socket activation"));
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

        // Nothing of another namespace; so this one's sentinel is on the health of the rules.
        let (_folder, mut containers) = agent(&recipe("A container host"));
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        containers.signal(Signal::SIGHUP);
        assert!(containers.said().contains("reloaded"));
        assert!(containers.stop(namespace.inode).is_empty());
    });
}

#[test]
fn a_thousand_reloads_under_load_miss_nothing() {
    const RELOADS: usize = 1000;
    in_namespace(|namespace| {
        let (_folder, path) = file("");
        let arguments = ["--config", path.to_str().unwrap(), "--no-collapse"];
        let mut agent =
            Agent::start_quiet(&[&arguments[..], &["--ring-size", "67108864"]].concat());
        let load = format!(
            "{TAKE} use Fcntl; $| = 1; print \"ready\\n\"; my ($count, $in) = (0, ''); \
             fcntl(STDIN, F_SETFL, O_NONBLOCK); \
             until (sysread(STDIN, $in, 1)) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
             take($s, sockaddr_in(976, INADDR_LOOPBACK)); close $s; $count++; \
             select(undef, undef, undef, 0.002) }} print \"$count\\n\""
        );
        let mut load = Dialogue::start(Command::new("perl").args(["-e", &load]));
        load.wait_for("ready");
        let texts = [
            "",
            "[[rule]]\nname = \"x\"\ndecide = \"critical\"\nport = [22, 976]\n",
        ];
        for (number, text) in (0..RELOADS).zip(texts.iter().cycle()) {
            std::fs::write(&path, text).unwrap();
            agent.signal(Signal::SIGHUP);
            let said = agent.said();
            assert!(said.contains("reloaded"), "{number}: {said}");
        }
        load.go_on();
        let count: usize = load.line().parse().unwrap();
        load.end();
        assert!(count > 100, "{count}");
        for number in 0..count {
            for event in ["bind", "close"] {
                let alert = agent.alert(namespace.inode);
                assert_eq!(alert["event"], event, "{number} of {count}: {alert}");
            }
        }
        assert!(agent.stop(namespace.inode).is_empty());
    });
}

#[test]
fn a_bad_file_leaves_the_rules_as_they_were_and_says_so() {
    in_namespace(|namespace| {
        let good = "[[rule]]\nname = \"x\"\ndecide = \"critical\"\nport = 976\n";
        let (_folder, path) = file(good);
        let mut agent = Agent::start_quiet(&["--no-collapse", "--config", path.to_str().unwrap()]);
        std::fs::write(
            &path,
            "[[rule]]\nname = \"x\"\ndecide = \"ignore\"\nprot = 976\n",
        )
        .unwrap();
        agent.signal(Signal::SIGHUP);
        let problem = "portwatch.toml:4:1: unknown key \"prot\"; did you mean \"port\"?";
        let said = agent.said();
        assert!(
            said.contains("the rules stay as they were") && said.contains(problem),
            "{said}"
        );
        let health = agent.health();
        assert!(
            health["detail"].as_str().unwrap().contains(problem),
            "{health}"
        );
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        assert_alert!(agent.alert(namespace.inode), { "severity" => "critical", "rule/name" => "x" });
        agent.alert(namespace.inode);

        // A file that is right again is taken again, and what sits there is told.
        let _assigned = UdpSocket::bind("127.0.0.1:22").unwrap();
        std::fs::write(&path, good.replace("976", "22")).unwrap();
        agent.signal(Signal::SIGHUP);
        assert!(agent.said().contains("reloaded"));
        assert_alert!(agent.alert(namespace.inode), {
            "origin" => "snapshot",
            "port" => 22,
            "rule/name" => "x",
        });
        agent.stop(namespace.inode);
    });
}

#[test]
fn a_broken_file_is_refused_with_its_place() {
    let (_folder, path) = file("[[rule]]\nname = \"x\"\ndecide = \"ignroe\"\n");
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
fn explain_alert_names_the_rule_of_a_real_alert() {
    in_namespace(|namespace| {
        let plain = Agent::start(&["--all"]);
        drop(UdpSocket::bind("127.0.0.1:900").unwrap());
        let bind: Value = plain.alert(namespace.inode);
        drop(plain);
        let (_folder, path) = file(&recipe("A legacy service on 900"));
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
            problem.contains("stdin:2: no alert about a socket"),
            "{problem}"
        );
    });
    let finished = finish(Command::new(binary()).args(["explain-alert", "--config", "/dev/null"]));
    assert_eq!(
        (finished.status.code(), finished.stdout.as_str()),
        (Some(0), "")
    );
}
