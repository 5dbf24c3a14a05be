//! What goes wrong gets one line on stderr and an exit code of its own.

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader},
    net::{TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::{
    assert_alert,
    support::{Agent, binary, binds, copy_program, finish, in_namespace, perl, run},
};

#[test]
fn bad_input_gets_one_line_and_a_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
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
    let plain_folder = folder.path().to_str().unwrap();

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
        (&["--registry", plain_folder], 5, "Is a directory"),
        (&["registry", "--diff", &other], 5, "other.csv: record 1"),
        (
            &["--cgroup", "/no/such/cgroup"],
            4,
            "--cgroup /no/such/cgroup: No such file",
        ),
        (
            &["--cgroup", plain_folder],
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
            "{arguments:?} said {}",
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
fn without_privileges_it_says_which_are_missing() {
    // Where everybody may run it.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("portwatch");
    copy_program(binary(), &program);
    let finished = finish(Command::new(&program).uid(65_534).gid(65_534));
    assert_eq!(finished.status.code(), Some(3), "{}", finished.stderr);
    assert_eq!(
        finished.stderr,
        "portwatch: loading BPF programs needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: run portwatch \
         as root of the host, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (and \
         CAP_SYS_PTRACE to name other users' programs, CAP_SYS_ADMIN to name network namespaces)\n"
    );
    // Root of a user namespace has every capability there, and none that counts.
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
    // What needs no privilege works without.
    let explained = finish(
        Command::new(&program)
            .args(["explain", "976"])
            .uid(65_534)
            .gid(65_534),
    );
    assert!(explained.status.success(), "{}", explained.stderr);
    assert!(
        explained.stdout.contains("only what this user may see"),
        "{}",
        explained.stdout
    );
}

#[test]
fn without_a_mounted_cgroup_v2_it_mounts_its_own() {
    in_namespace(|namespace| {
        let script = format!(
            "for mount in $(awk '$3 == \"cgroup2\" {{ print $2 }}' /proc/mounts); do \
             umount \"$mount\" || exit 9; done; exec {} --format json --no-collapse",
            binary().display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        let agent = Agent::spawn(&mut command);
        assert!(
            agent.armed.contains("(mounted privately)"),
            "{}",
            agent.armed
        );
        drop(TcpListener::bind("127.0.0.1:976").unwrap());
        for event in ["bind", "listen", "close"] {
            assert_alert!(agent.alert(namespace.inode), { "event" => event });
        }
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}

#[test]
fn a_signal_ends_it_well_with_all_that_was_reported() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        in_namespace(|namespace| {
            let agent = Agent::start(&[]);
            perl(&binds(50));
            // Nobody waited: what is not printed yet must still come.
            assert_eq!(
                agent.stop_with(signal, namespace.inode).len(),
                100,
                "{signal}"
            );
        });
    }
}

#[test]
fn a_closed_stdout_ends_it_quietly() {
    for reported_first in [false, true] {
        in_namespace(|_| {
            let mut agent = Command::new(binary())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stderr = BufReader::new(agent.stderr.take().unwrap());
            let mut line = String::new();
            stderr.read_line(&mut line).unwrap();
            assert!(line.contains("armed"), "{line}");
            let mut stdout = BufReader::new(agent.stdout.take().unwrap());
            if reported_first {
                drop(UdpSocket::bind("127.0.0.1:976").unwrap());
                stdout.read_line(&mut line).unwrap();
            }
            drop(stdout);
            // It ends although nothing more happens.
            assert_eq!(agent.wait().unwrap().code(), Some(6));
            line.clear();
            assert_eq!(stderr.read_line(&mut line).unwrap(), 0, "{line}");
        });
    }
}
