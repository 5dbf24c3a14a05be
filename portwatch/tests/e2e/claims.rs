//! Claims: what a process chooses itself, such as the name of a cgroup, is shown as unverified, and
//! rules match it only where they say so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::unistd::{Uid, chown};
use rustix::fs::{XattrFlags, setxattr};
use serde_json::{Value, json};

use super::rules::file;
use crate::{
    assert_alert,
    support::{
        self, Cgroup, Helper, Monitor, Namespace, cgroup_root, copy_program, in_namespace, run,
    },
};

const BIND: &str = "use Socket; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
                    bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die $!;";

const INVOCATION_ID: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A rule that ignores 976 by that condition.
fn ignore(condition: &str) -> String {
    format!("[[rule]]\nname = \"x\"\ndecide = \"ignore\"\nport = 976\n{condition}\n")
}

fn monitor(rules: &str) -> (tempfile::TempDir, Monitor) {
    let (directory, path) = file(rules);
    let monitor = Monitor::start_default(&["--no-aggregate", "--config", path.to_str().unwrap()]);
    (directory, monitor)
}

/// The alerts about a bind in that cgroup, whose close is checked to be the next.
fn bind_in(cgroup: &Cgroup, monitor: &Monitor, namespace: &Namespace) -> Value {
    cgroup.perl(BIND);
    let bind = monitor.alert(namespace.inode);
    assert_eq!(bind["event"], "bind");
    assert_eq!(monitor.alert(namespace.inode)["event"], "close");
    bind
}

/// Sets the attribute of that name as older versions of the service manager do: newer ones set one that
/// begins with `user.` as well, which takes no privilege to read.
fn set(cgroup: &Cgroup, name: &str, value: &[u8]) {
    let name = format!("trusted.{name}");
    setxattr(cgroup.path(), name, value, XattrFlags::empty()).unwrap();
}

fn own(path: &Path, uid: u32) {
    chown(path, Some(Uid::from_raw(uid)), None).unwrap();
}

fn path_of(cgroup: &Cgroup) -> String {
    let below = cgroup.path().strip_prefix(cgroup_root()).unwrap();
    format!("/{}", below.display())
}

/// A directory that is removed when this is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_unit_by_name_only_is_not_ignored() {
    in_namespace(|namespace| {
        let (_directory, monitor) = monitor(&ignore("unit = \"nginx.service\""));
        let parent = Cgroup::new("units");
        let unit = parent.below("nginx.service");
        let claim = |what: &str, verified: &str| {
            let bind = bind_in(&unit, &monitor, namespace);
            assert_alert!(bind, {
                "process/unit" => "nginx.service",
                "process/verified/unit" => Value::Null,
                "process/verified/cgroup" => verified,
                "rule" => Value::Null,
            });
            let unverified = bind["process"]["unverified"].as_array().unwrap();
            assert!(unverified.contains(&json!("unit")), "{what}: {bind}");
        };
        // A cgroup of root that the service manager does not know.
        claim("no mark", &path_of(&unit));
        set(&unit, "invocation_id", INVOCATION_ID);
        // The mark is real, and what it is on could be moved there by anybody.
        own(parent.path(), 65_534);
        claim("delegated to a user", &path_of(&parent));
        own(parent.path(), 0);
        set(&parent, "delegate", b"1");
        claim("delegated to a program", &path_of(&parent));
        set(&parent, "delegate", b"0");
        unit.perl(BIND);
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_process_below_a_delegated_unit_is_in_that_unit() {
    in_namespace(|namespace| {
        let outer = Cgroup::new("user@1000.service");
        set(&outer, "invocation_id", INVOCATION_ID);
        own(outer.path(), 65_534);
        let claimed = outer.below("nginx.service");
        let name = outer.path().file_name().unwrap().to_str().unwrap();
        let (_directory, monitor) = monitor(&ignore("unit = \"nginx.service\""));
        assert_alert!(bind_in(&claimed, &monitor, namespace), {
            "process/unit" => "nginx.service",
            "process/verified/unit" => json!({"name": name, "by": "systemd"}),
        });
        monitor.stop_without_more(namespace.inode);
        for condition in [
            format!("unit = {name:?}"),
            format!("cgroup = {:?}", path_of(&outer)),
            "unit = \"nginx.service\"\nunverified = true".to_owned(),
        ] {
            let (_directory, monitor) = self::monitor(&ignore(&condition));
            claimed.perl(BIND);
            monitor.stop_without_more(namespace.inode);
        }
    });
}

#[test]
fn a_unit_in_a_hierarchy_that_nobody_uses_is_a_claim() {
    in_namespace(|namespace| {
        let (_directory, monitor) = monitor(&ignore("unit = \"nginx.service\""));
        let directory = tempfile::tempdir().unwrap();
        let script = format!(
            "mount -t cgroup -o none,name=portwatch-{} none \"$1\" || {{ echo none; exit; }}; \
             cd \"$1\"; mkdir nginx.service; \
             sh -c 'echo $$ > nginx.service/cgroup.procs; exec perl -e \"$0\"' \"$2\"; \
             until rmdir nginx.service; do sleep 0.01; done 2>/dev/null",
            std::process::id()
        );
        let mut process = Helper::start(
            Command::new("unshare")
                .args(["--mount", "sh", "-c", &script, "sh"])
                .arg(directory.path())
                .arg(format!("{BIND} $| = 1; print \"bound\\n\"; <STDIN>")),
        );
        if process.line() == "none" {
            println!("this kernel has no cgroup version 1");
            return;
        }
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "bind",
            "process/unit" => "nginx.service",
            "process/verified/unit" => Value::Null,
            "rule" => Value::Null,
        });
        for (arguments, expected) in [
            (&["list"][..], "nginx.service (unverified)"),
            (&["explain", "976"], "(unit nginx.service, unverified)"),
        ] {
            let shown = run(arguments).stdout;
            assert!(shown.contains(expected), "{arguments:?}: {shown}");
        }
        process.resume();
        process.wait();
        assert_eq!(monitor.alert(namespace.inode)["event"], "close");
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_container_that_no_runtime_knows_is_a_claim() {
    in_namespace(|namespace| {
        let (_directory, monitor) = monitor(&ignore("container = true"));
        let parent = Cgroup::new("containers");
        let id = format!("portwatch-test-{}", std::process::id());
        let cgroup = parent.below(&format!("runc-{id}.scope"));
        let claim = || {
            assert_alert!(bind_in(&cgroup, &monitor, namespace), {
                "process/container" => json!({"id": id, "runtime": "runc"}),
                "process/verified/container" => Value::Null,
                "rule" => Value::Null,
            });
        };
        claim();
        let state = Removed(Path::new("/run/runc").join(&id));
        fs::create_dir_all(&state.0).unwrap();
        // It exists, but this cgroup need not be its own.
        own(parent.path(), 65_534);
        claim();
        own(parent.path(), 0);
        cgroup.perl(BIND);
        monitor.stop_without_more(namespace.inode);

        let (_directory, plain) = self::monitor("");
        assert_alert!(bind_in(&cgroup, &plain, namespace), {
            "process/verified/container" => json!({"id": id, "by": "runc"}),
        });
    });
}

#[test]
fn a_program_at_the_path_of_another_is_not_ignored() {
    in_namespace(|namespace| {
        let directory = tempfile::tempdir().unwrap();
        let perl = fs::canonicalize("/usr/bin/perl").unwrap();
        let copy = directory.path().join("copy");
        copy_program(&perl, &copy);
        let (perl, copy) = (perl.to_str().unwrap(), copy.to_str().unwrap());
        let mounted = || {
            let script = format!("mount --bind {copy} {perl}; exec {perl} -e \"$0\"");
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-ec", &script, BIND]);
            let status = command.status().unwrap();
            assert!(status.success(), "{status}");
        };
        let condition = format!("exe = {perl:?}");
        let (_directory, monitor) = monitor(&ignore(&condition));
        support::perl(BIND);
        mounted();
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "bind",
            "process/exe" => perl,
            "process/verified/exe" => Value::Null,
            "process/unverified/0" => "exe",
            "rule" => Value::Null,
        });
        assert_eq!(monitor.alert(namespace.inode)["event"], "close");
        monitor.stop_without_more(namespace.inode);

        let rule = format!("{condition}\nunverified = true");
        let (_directory, monitor) = self::monitor(&ignore(&rule));
        mounted();
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn an_exception_to_a_deny_rule_applies_in_the_kernel_as_in_the_alerts() {
    in_namespace(|namespace| {
        let parent = Cgroup::new("exception");
        let child = parent.below("gateway.service");
        let bind = || {
            let script =
                format!("$SIG{{__DIE__}} = sub {{ print $_[0] }}; {BIND} print \"bound\\n\"");
            let mut perl = child.start_perl(&format!("eval {{ {script} }}"));
            let result = perl.line();
            perl.wait();
            result
        };
        let start = |key: &str| {
            let rules = format!(
                "[[rule]]\nname = \"gateway\"\ndecide = \"notice\"\nport = 976\ncgroup = {:?}\n{key}\n\
                 [[rule]]\nname = \"others\"\ndecide = \"deny\"\nport = 976\n",
                path_of(&child)
            );
            let (directory, path) = file(&rules);
            let root = parent.path().to_str().unwrap();
            let arguments = ["--no-aggregate", "--cgroup", root, "--config"];
            let path = path.to_str().unwrap();
            let monitor = Monitor::start_default(&[&arguments[..], &[path]].concat());
            (directory, monitor)
        };
        let cases = [
            (0, "", true),
            (65_534, "", false),
            (65_534, "unverified = true", true),
        ];
        for (owner, key, allowed) in cases {
            own(parent.path(), owner);
            let (_directory, mut monitor) = start(key);
            if !allowed {
                assert!(monitor.log_line().contains("below a delegated one"));
            }
            let result = bind();
            assert_eq!(result == "bound", allowed, "{owner} {key}: {result}");
            let events = if allowed {
                &["bind", "close"][..]
            } else {
                &["deny"]
            };
            for event in events {
                assert_alert!(monitor.alert(namespace.inode), {
                    "event" => *event,
                    "rule/name" => if allowed { "gateway" } else { "others" },
                });
            }
            monitor.stop_without_more(namespace.inode);
        }
    });
}

#[test]
fn check_config_warns_of_a_rule_that_rests_on_a_claim() {
    let claim = "unit = \"nginx.service\"\nunverified = true";
    let cases = [
        (ignore(claim), "on an unverified claim alone (unit)"),
        (ignore(&format!("{claim}\nuser = \"root\"")), ""),
        (ignore("unit = \"nginx.service\""), ""),
        (ignore("unverified = true"), "has no effect"),
    ];
    for (rules, expected) in cases {
        let (_directory, path) = file(&rules);
        let finished = run(&["check-config", path.to_str().unwrap()]);
        assert!(finished.status.success(), "{}", finished.stderr);
        assert!(
            finished.stdout.contains(": 1 rule\n"),
            "{}",
            finished.stdout
        );
        match expected {
            "" => assert_eq!(finished.stderr, "", "{rules}"),
            _ => assert!(
                finished.stderr.contains(expected),
                "{rules}: {}",
                finished.stderr
            ),
        }
    }
}
