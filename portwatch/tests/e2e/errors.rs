//! Failures: one line on stderr and an exit code.

use std::{
    fs::{self, Permissions},
    io::BufRead as _,
    net::{TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Command,
};

use nix::sys::signal::Signal;

use crate::{
    assert_alert,
    support::{
        Monitor, Unread, binary, bind_and_close, copy_program, finish, in_namespace, perl, run,
    },
};

#[test]
fn invalid_input_prints_one_line_and_sets_the_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let titles = "Service Name,Port Number,Transport Protocol,Description,Assignee,Contact,\
        Registration Date,Modification Date,Reference,Service Code,\
        Unauthorized Use Reported,Assignment Notes\n";
    let malformed = file(
        "malformed.csv",
        format!("{titles}x,9x,tcp,d,,,,,,,,\n").as_bytes(),
    );
    let other = file("other.csv", b"a,b\n1,2\n");
    let empty = file("empty.csv", b"");
    let plain_directory = directory.path().to_str().unwrap();

    let cases: [(&[&str], i32, &str); 12] = [
        (
            &["--ring-size", "3000"],
            2,
            "--ring-size 3000: must be a power of two",
        ),
        (
            &["--ring-size", "1024"],
            2,
            "--ring-size 1024: must be a power of two, at least 4096",
        ),
        (
            &["--ring-size", "0"],
            2,
            "--ring-size 0: must be a power of two",
        ),
        (
            &["--registry", "/no/such.csv"],
            5,
            "/no/such.csv: No such file",
        ),
        (
            &["--registry", &malformed],
            5,
            "record 2 (line 2), column 2 (Port Number): \"9x\"",
        ),
        (
            &["--registry", &other],
            5,
            "record 1 (line 1), column 2 (the last): has 2 columns",
        ),
        (&["--registry", &empty], 5, "names no system port"),
        (&["--registry", plain_directory], 5, "Is a directory"),
        (&["registry", "--diff", &other], 5, "other.csv: record 1"),
        (
            &["--cgroup", "/no/such/cgroup"],
            4,
            "--cgroup /no/such/cgroup: No such file",
        ),
        (
            &["--cgroup", plain_directory],
            4,
            "is not in a cgroup v2 hierarchy; this host's is /",
        ),
        (
            &["registry", "--registry", &malformed],
            5,
            "get IANA's service-names-port-numbers.csv",
        ),
    ];
    for (arguments, code, message) in cases {
        let finished = run(arguments);
        assert_eq!(
            finished.status.code(),
            Some(code),
            "{arguments:?}: {}",
            finished.stderr
        );
        assert_eq!(finished.stdout, "", "{arguments:?}");
        assert!(
            finished.stderr.contains(message),
            "{arguments:?} printed {}",
            finished.stderr
        );
        assert!(
            finished.stderr.starts_with("portwatch: "),
            "{}",
            finished.stderr
        );
        assert_eq!(
            finished.stderr.matches('\n').count(),
            1,
            "{}",
            finished.stderr
        );
    }
    for arguments in [
        &["--no-such-option"] as &[&str],
        &["explain", "70000"],
        &["explain"],
    ] {
        let finished = run(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}");
        assert!(
            finished.stderr.starts_with("error: "),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn an_input_file_that_others_can_change_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rules.toml");
    fs::write(
        &path,
        "[[rule]]\nname = \"all\"\ndecide = \"ignore\"\nport = \"1-1023\"\n",
    )
    .unwrap();
    let name = path.to_str().unwrap();
    let chmod = format!("chmod go-w {name}");
    let chown = format!("belongs to uid 65534, who can change the rules: chown root {name}");
    for (mode, owner, way_out) in [(0o666, 0, &*chmod), (0o644, 65_534, &*chown)] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
        for arguments in [
            &["check-config", name][..],
            &["run", "--config", name],
            &["list", "--config", name],
            &["explain-alert", "--config", name],
            &["registry", "--registry", name],
            &["registry", "--diff", name],
        ] {
            let finished = run(arguments);
            assert_eq!(
                finished.status.code(),
                Some(9),
                "{arguments:?}: {}",
                finished.stderr
            );
            assert!(
                finished.stderr.contains(" is not used: "),
                "{}",
                finished.stderr
            );
            assert!(finished.stderr.contains(way_out), "{}", finished.stderr);
        }
    }
}

#[test]
fn numbers_on_the_command_line_have_a_range() {
    for (option, value) in [
        ("--ring-size", "2147483648"),
        ("--ring-size", "-1"),
        ("--health-interval", "0"),
        ("--health-interval", "86401"),
        ("--health-interval", "18446744073709551615"),
        ("--registry-as-of", "99999-01-01"),
    ] {
        let finished = run(&["run", "--registry", "/no/such.csv", option, value]);
        assert_eq!(
            finished.status.code(),
            Some(2),
            "{option} {value}: {}",
            finished.stderr
        );
    }
}

#[test]
fn no_file_ends_or_hangs_the_monitor_when_it_is_reloaded() {
    let rules = |count: usize| -> String {
        let rule =
            |index| format!("[[rule]]\nname = \"{index}\"\ndecide = \"ignore\"\nexe = \"/x\"\n");
        (0..count).map(rule).collect()
    };
    let pattern = |depth: usize| {
        let (open, close) = ("{a,".repeat(depth), "}".repeat(depth));
        format!("[[rule]]\nname = \"a\"\ndecide = \"ignore\"\nexe = \"/{open}{close}\"\n")
    };
    in_namespace(|namespace| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("portwatch.toml");
        let write = |text: &str| fs::write(&path, text).unwrap();
        let link = |target: &str| std::os::unix::fs::symlink(target, &path).unwrap();
        write("");
        let arguments = ["--no-aggregate", "--config", path.to_str().unwrap()];
        let mut monitor = Monitor::start_default(&arguments);
        let cases: [(&dyn Fn(), &str); 8] = [
            (
                &|| write(&pattern(200)),
                "alternatives are nested more than 8 deep",
            ),
            (&|| write(&"[".repeat(100_000)), "portwatch.toml:1:"),
            (
                &|| write("[aggregate]\ninterval = \"9223372036854775807s\"\n"),
                "interval must be between 100ms and 86400s",
            ),
            (&|| write(&rules(10_001)), "a file has at most 10000"),
            (
                &|| write(&"# \n".repeat(1_000_000)),
                "more than the 2048 KiB",
            ),
            (&|| link("/dev/zero"), "it is a device, not a regular file"),
            (
                &|| nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap(),
                "it is a pipe, not a regular file",
            ),
            (
                &|| {
                    write("[[rule]]\nname = \"all\"\ndecide = \"ignore\"\n");
                    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
                },
                "is writable by others (mode 666)",
            ),
        ];
        for (make, problem) in cases {
            fs::remove_file(&path).unwrap();
            make();
            monitor.signal(Signal::SIGHUP);
            let line = monitor.log_line();
            assert!(
                line.contains("reload failed, keeping the previous rules: "),
                "{line}"
            );
            assert!(line.contains(problem), "{line}");
            let health = monitor.health();
            assert!(
                health["detail"].as_str().unwrap().contains(problem),
                "{health}"
            );
            drop(UdpSocket::bind("127.0.0.1:976").unwrap());
            for event in ["bind", "close"] {
                assert_alert!(monitor.alert(namespace.inode), { "event" => event });
            }
        }
        fs::remove_file(&path).unwrap();
        write(&rules(10_000));
        monitor.signal(Signal::SIGHUP);
        let line = monitor.log_line();
        assert!(line.ends_with(": 10000 rules\n"), "{line}");
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn missing_privileges_are_named() {
    // A copy that any user may execute.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("portwatch");
    copy_program(binary(), &program);
    let finished = finish(Command::new(&program).uid(65_534).gid(65_534));
    assert_eq!(finished.status.code(), Some(3), "{}", finished.stderr);
    assert_eq!(
        finished.stderr,
        "portwatch: loading BPF programs needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: run portwatch \
         as root of the host, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (and \
         CAP_SYS_PTRACE to name other users' programs, CAP_SYS_ADMIN to name network namespaces)\n"
    );
    // Root of a user namespace has all capabilities there, but none that BPF needs.
    let finished = finish(
        Command::new("unshare")
            .args(["--user", "--map-root-user"])
            .arg(binary()),
    );
    assert_eq!(finished.status.code(), Some(3), "{}", finished.stderr);
    assert!(
        finished
            .stderr
            .contains("root outside of any user namespace"),
        "{}",
        finished.stderr
    );
    // `explain` needs no privileges.
    let explained = finish(
        Command::new(&program)
            .args(["explain", "976"])
            .uid(65_534)
            .gid(65_534),
    );
    assert!(explained.status.success(), "{}", explained.stderr);
    assert!(
        explained.stdout.contains("this user"),
        "{}",
        explained.stdout
    );
}

#[test]
fn without_a_mounted_cgroup_v2_the_monitor_mounts_one_privately() {
    in_namespace(|namespace| {
        let script = format!(
            "for mount in $(awk '$3 == \"cgroup2\" {{ print $2 }}' /proc/mounts); do \
             umount \"$mount\" || exit 9; done; exec {} --format json --no-aggregate",
            binary().display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        let monitor = Monitor::spawn(&mut command);
        assert!(
            monitor.start_line.contains("(mounted privately)"),
            "{}",
            monitor.start_line
        );
        drop(TcpListener::bind("127.0.0.1:976").unwrap());
        for event in ["bind", "listen", "close"] {
            assert_alert!(monitor.alert(namespace.inode), { "event" => event });
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_signal_stops_the_monitor_after_all_alerts_are_printed() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        in_namespace(|namespace| {
            let monitor = Monitor::start(&[]);
            perl(&bind_and_close(50));
            // Some of these alerts are not printed yet when the signal arrives.
            assert_eq!(
                monitor.stop_with(signal, namespace.inode).len(),
                100,
                "{signal}"
            );
        });
    }
}

#[test]
fn a_closed_stdout_ends_the_monitor_without_a_message() {
    for reported_first in [false, true] {
        in_namespace(|_| {
            let mut monitor = Unread::spawn(&mut Command::new(binary()));
            let mut line = String::new();
            if reported_first {
                drop(UdpSocket::bind("127.0.0.1:976").unwrap());
                monitor.stdout.read_line(&mut line).unwrap();
            }
            drop(monitor.stdout);
            // It ends without a further event.
            assert_eq!(monitor.child.wait().unwrap().code(), Some(6));
            line.clear();
            assert_eq!(monitor.stderr.read_line(&mut line).unwrap(), 0, "{line}");
        });
    }
}
