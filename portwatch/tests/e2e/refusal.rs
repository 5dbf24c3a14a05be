//! What a rule refuses, the program does not get; what ends with the agent, and what does not.

use std::process::Command;

use nix::sys::signal::Signal;

use super::rules::{file, recipe};
use crate::{
    assert_alert,
    support::{Agent, Cgroup, binary, finish, in_namespace},
};

/// Perl that says what bind(2) answers it.
fn answer_of(port: u16, transport: &str) -> String {
    let kind = if transport == "tcp" {
        "SOCK_STREAM"
    } else {
        "SOCK_DGRAM"
    };
    format!(
        "use Socket; socket(my $s, PF_INET, {kind}, 0) or die; \
         print bind($s, sockaddr_in({port}, INADDR_LOOPBACK)) ? \"ok\" : \"$!\", \"\\n\""
    )
}

/// What bind(2) answers in that cgroup to a user with the right to bind there.
fn bind(cgroup: &Cgroup, port: u16, transport: &str, user: &str) -> String {
    let script = answer_of(port, transport);
    let mut asked = cgroup.start(
        "setpriv",
        &[
            "--reuid",
            user,
            "--clear-groups",
            "--inh-caps",
            "+net_bind_service",
            "--ambient-caps",
            "+net_bind_service",
            "perl",
            "-e",
            &script,
        ],
    );
    let answer = asked.line();
    asked.end();
    answer
}

const REFUSED: &str = "Operation not permitted";

#[test]
fn a_bind_that_a_rule_denies_is_refused_and_told_until_the_agent_ends() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("denied");
        let (_folder, path) = file(&recipe("Deny everything unassigned but ..."));
        let arguments = [
            "--config",
            path.to_str().unwrap(),
            "--cgroup",
            cgroup.path().to_str().unwrap(),
            "--no-collapse",
        ];
        let agent = Agent::start_quiet(&arguments);
        for (transport, port) in [("udp", 976), ("tcp", 976)] {
            assert_eq!(bind(&cgroup, port, transport, "root"), REFUSED);
            assert_alert!(agent.alert(namespace.inode), {
                "event" => "deny",
                "severity" => "warning",
                "transport" => transport,
                "port" => 976,
                "address" => "127.0.0.1",
                "process/comm" => "perl",
                "process/user" => "root",
                "rule/name" => "unassigned",
                "rule/reason" => "nobody has business there",
                "rule/decision" => "deny",
                "rule/dry_run" => false,
            });
        }
        // Neither what is assigned nor what the rule before it lets be, for that user only.
        assert_eq!(bind(&cgroup, 123, "udp", "root"), "ok");
        assert_eq!(bind(&cgroup, 955, "udp", "root"), REFUSED);
        assert_eq!(agent.alert(namespace.inode)["event"], "deny");
        assert_eq!(bind(&cgroup, 955, "udp", "www-data"), "ok");
        for event in ["bind", "close"] {
            assert_alert!(agent.alert(namespace.inode), {
                "event" => event,
                "severity" => "notice",
                "process/user" => "www-data",
                "rule/name" => "web",
            });
        }
        assert!(agent.stop(namespace.inode).is_empty());
        assert_eq!(bind(&cgroup, 976, "udp", "root"), "ok");

        let dry = Agent::start_quiet(&[&arguments[..], &["--dry-run"]].concat());
        assert_eq!(bind(&cgroup, 976, "udp", "root"), "ok");
        for event in ["bind", "close"] {
            assert_alert!(dry.alert(namespace.inode), {
                "event" => event,
                "rule/decision" => "deny",
                "rule/dry_run" => true,
            });
        }
        dry.stop(namespace.inode);
    });
}

#[test]
fn a_rule_that_denies_can_go_by_cgroup_also_by_one_that_comes_later() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("by-cgroup");
        let root = crate::support::cgroup_root();
        let name = cgroup
            .path()
            .strip_prefix(&root)
            .unwrap()
            .display()
            .to_string();
        let (_folder, path) = file(&format!(
            "[[rule]]\nname = \"inner\"\ndecide = \"ignore\"\nport = 976\ncgroup = \"/{name}/inner\"\n\
             [[rule]]\nname = \"outer\"\ndecide = \"deny\"\nport = 976\ncgroup = \"/{name}\"\n"
        ));
        let config = path.to_str().unwrap();
        let mut agent = Agent::start_quiet(&[
            "--config",
            config,
            "--health-interval",
            "1",
            "--no-collapse",
        ]);
        assert!(agent.said().contains("inner is there yet"));
        let inner = cgroup.below("inner");
        let deep = inner.below("deep");
        // Within a second it is found.
        while bind(&deep, 976, "udp", "root") == REFUSED {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(bind(&inner, 976, "udp", "root"), "ok");
        assert_eq!(bind(&cgroup, 976, "udp", "root"), REFUSED);
        let denied = loop {
            let alert = agent.alert(namespace.inode);
            let place = alert["process"]["cgroup"].as_str().unwrap_or("").to_owned();
            assert_eq!(alert["event"], "deny", "{alert}");
            if !place.contains("/inner") {
                break alert;
            }
        };
        assert_alert!(denied, { "rule/name" => "outer", "process/cgroup" => format!("/{name}") });
        // And where it was never meant to be refused, it is not.
        let elsewhere = Cgroup::new("elsewhere");
        assert_eq!(bind(&elsewhere, 976, "udp", "root"), "ok");
        agent.signal(Signal::SIGKILL);
        agent.finish();
        assert_eq!(bind(&cgroup, 976, "udp", "root"), "ok");
    });
}

#[test]
fn what_fails_closed_is_refused_until_it_is_let_go() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("closed");
        let (_folder, path) = file("[[rule]]\nname = \"no\"\ndecide = \"deny\"\nport = 976\n");
        // A mount namespace of its own, for a BPF file system of its own.
        let script = format!(
            "mount -t bpf bpf /sys/fs/bpf && mkfifo fifo && \
             ({pw} run --fail-closed --cgroup {cgroup} --config {config} 2>fifo & echo $! >pid) && \
             read line <fifo && case \"$line\" in *armed*) ;; *) echo \"$line\"; exit 1;; esac && \
             kill -9 $(cat pid) && \
             sh -c 'echo $$ >{cgroup}/cgroup.procs; exec perl -e \"$0\"' '{ask}' && \
             {pw} unpin && \
             sh -c 'echo $$ >{cgroup}/cgroup.procs; exec perl -e \"$0\"' '{ask}' && {pw} unpin",
            pw = binary().display(),
            cgroup = cgroup.path().display(),
            config = path.display(),
            ask = answer_of(976, "udp").replace('\'', ""),
        );
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-ec", &script])
            .current_dir(folder.path());
        let finished = finish(&mut command);
        assert!(
            finished.status.success(),
            "{}{}",
            finished.stdout,
            finished.stderr
        );
        let answers: Vec<&str> = finished.stdout.lines().collect();
        assert_eq!(answers, [REFUSED, "ok"], "{}", finished.stderr);
        assert!(
            finished.stderr.contains("nothing is pinned"),
            "{}",
            finished.stderr
        );
    });
}
