//! How processes are described: containers, scripts, executables without a file, and processes
//! that exit before /proc can be read.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    assert_alert,
    support::{Cgroup, Helper, Monitor, copy_program, in_namespace},
};

/// Perl that binds 976/udp and ends.
const BIND: &str = "use Socket; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
    bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die;";

fn run(program: &mut Command) {
    let status = program.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program:?}: {status}");
}

#[test]
fn a_container_is_named_by_its_cgroup() {
    const ID: &str = "5f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8";
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let parent = Cgroup::new("container");
        let scope = parent.below(&format!("docker-{ID}.scope"));
        // A process that has exited when /proc is read, and one that still runs.
        for rest in ["", " sleep 60"] {
            let mut perl = scope.start_perl(&format!("{BIND} $| = 1; print \"ready\\n\";{rest}"));
            perl.wait_for("ready");
            let bind = monitor.alert(namespace.inode);
            assert_alert!(bind, {
                "event" => "bind",
                "process/container" => json!({"id": ID, "runtime": "docker"}),
                "process/unit" => format!("docker-{ID}.scope"),
                "holders/0/container/runtime" => "docker",
            });
            let cgroup = bind["process"]["cgroup"].as_str().unwrap();
            assert!(cgroup.ends_with(&format!("/docker-{ID}.scope")), "{cgroup}");
            drop(perl);
            assert_eq!(monitor.alert(namespace.inode)["event"], "close");
        }
    });
}

#[test]
fn executables_and_scripts_are_named() {
    struct Case {
        what: &'static str,
        command: Command,
        exe: String,
        flags: Value,
        script: Value,
    }
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let directory = tempfile::tempdir().unwrap();
        let perl = fs::canonicalize("/usr/bin/perl").unwrap();
        let shown = |path: &Path| path.to_str().unwrap().to_owned();
        let copy = directory.path().join("copy");
        copy_program(&perl, &copy);
        let mut deleted = Command::new(&copy);
        deleted.args([
            "-e",
            &format!("unlink('{}') or die; {BIND}", copy.display()),
        ]);

        // memfd_create(2), a copy of perl, and execve(2) of a read-only descriptor.
        let mut memfd = Command::new("/usr/bin/perl");
        memfd.args([
            "-e",
            "use Fcntl; my $name = 'hidden'; my $fd = syscall(319, $name, 0); open(my $w, '>&=', $fd) or die; \
             open(my $r, '<', $^X) or die; binmode $_ for $r, $w; local $/; print {$w} <$r>; \
             open(my $x, '<', \"/proc/self/fd/$fd\") or die; close $w; fcntl($x, F_SETFD, 0); \
             exec { '/proc/self/fd/' . fileno $x } 'renamed', '-e', $ARGV[0]; die",
            BIND,
        ]);

        let script = directory.path().join("service");
        fs::write(&script, format!("#!/usr/bin/perl -w\n{BIND}\n")).unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let mut relative = Command::new("./service");
        relative.current_dir(directory.path());

        let cases = [
            Case {
                what: "a deleted file",
                command: deleted,
                exe: shown(&copy),
                flags: json!(["deleted"]),
                script: Value::Null,
            },
            Case {
                what: "a memfd",
                command: memfd,
                exe: "/memfd:hidden".into(),
                flags: json!(["deleted", "memfd"]),
                script: Value::Null,
            },
            Case {
                what: "a script",
                command: Command::new(&script),
                exe: shown(&perl),
                flags: json!([]),
                script: json!(shown(&script)),
            },
            Case {
                what: "a script by a relative name",
                command: relative,
                exe: shown(&perl),
                flags: json!([]),
                script: json!("./service"),
            },
        ];
        for Case {
            what,
            mut command,
            exe,
            flags,
            script,
        } in cases
        {
            run(&mut command);
            let [bind, close] = [(); 2].map(|()| monitor.alert(namespace.inode));
            assert_alert!(bind, {
                "process/exe" => exe,
                "process/exe_flags" => flags,
                "process/ppid" => std::process::id(),
                "process/ancestors/0/pid" => std::process::id(),
            });
            // With the working directory if the process still runs when /proc is read.
            let named = bind["process"]["script"].as_str().unwrap_or("");
            let wanted = script.as_str().unwrap_or("");
            assert!(
                named.ends_with(wanted.trim_start_matches('.')),
                "{what}: {bind}"
            );
            assert_eq!(named.is_empty(), wanted.is_empty(), "{what}: {bind}");
            assert_eq!(close["process"], bind["process"], "{what}");
        }
    });
}

#[test]
fn short_lived_programs_are_named_in_full() {
    const RUNS: usize = 300;
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        for number in 0..RUNS {
            run(Command::new("perl").args(["-e", BIND, &number.to_string()]));
        }
        for number in 0..RUNS {
            let number = number.to_string();
            for event in ["bind", "close"] {
                let alert = monitor.alert(namespace.inode);
                assert_alert!(alert, {
                    "event" => event,
                    "process/comm" => "perl",
                    "process/exe" => fs::canonicalize("/usr/bin/perl").unwrap().to_str().unwrap(),
                    "process/verified/exe" => "inode",
                    "process/cmdline" => json!(["perl", "-e", BIND, number]),
                    "process/ppid" => std::process::id(),
                    "process/ancestors/0/pid" => std::process::id(),
                });
                assert!(alert["process"]["started"].is_string(), "{alert}");
            }
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn thread_ancestors_and_capabilities_are_reported() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let tid = nix::unistd::gettid().as_raw();
        drop(std::net::UdpSocket::bind("127.0.0.1:976").unwrap());
        let bind = monitor.alert(namespace.inode);
        // The test's thread is not its process's first.
        assert_alert!(bind, { "process/tid" => tid, "process/capabilities" => Value::Null });
        monitor.alert(namespace.inode);

        // The trailing `true` keeps the shell as the parent.
        let inner = format!(
            "setpriv --reuid 65534 --clear-groups --inh-caps +net_bind_service \
            --ambient-caps +net_bind_service perl -e '{BIND} $| = 1; print \"ready\\n\"; <STDIN>'; true"
        );
        let mut shell = Helper::start(Command::new("sh").args(["-c", &inner]));
        shell.wait_for("ready");
        let bind = monitor.alert(namespace.inode);
        assert_alert!(bind, {
            "process/uid" => 65534,
            "process/capabilities" => json!(["CAP_NET_BIND_SERVICE"]),
            "process/ppid" => shell.pid(),
            "process/ancestors/0/pid" => shell.pid(),
            "process/ancestors/0/comm" => "sh",
            "process/ancestors/1/pid" => std::process::id(),
            "process/cwd" => std::env::current_dir().unwrap().to_str().unwrap(),
        });
        let ancestors = bind["process"]["ancestors"].as_array().unwrap();
        assert_eq!(ancestors.last().unwrap()["pid"], 1);
        shell.resume();
        shell.wait();
        assert_eq!(monitor.alert(namespace.inode)["event"], "close");
    });
}

#[test]
fn a_late_thread_is_attributed_to_its_process() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let bind = || drop(std::net::UdpSocket::bind("127.0.0.1:976").unwrap());
        let mut started = Vec::new();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            std::thread::scope(|scope| scope.spawn(bind).join().unwrap());
            for event in ["bind", "close"] {
                let alert = monitor.alert(namespace.inode);
                assert_alert!(alert, {
                    "event" => event,
                    "process/pid" => std::process::id(),
                    // Only /proc has it: the thread was recognized as part of the process.
                    "process/cwd" => std::env::current_dir().unwrap().to_str().unwrap(),
                });
                started.push(alert["process"]["started"].clone());
            }
        }
        started.dedup();
        assert_eq!(started.len(), 1, "{started:?}");
    });
}

#[test]
fn all_processes_with_the_socket_open_are_holders() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let mut perl = Helper::start(Command::new("perl").args([
            "-e",
            "use Socket; $| = 1; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die; listen($s, 4096) or die; \
             my $parent = $$; my $child = fork; \
             if (!$child) { sleep 1 while getppid() == $parent; exit } \
             print \"$child\\n\"; <STDIN>; kill 9, $child; waitpid $child, 0",
        ]));
        let child: u32 = perl.line().parse().unwrap();
        for _ in 0..2 {
            let alert = monitor.alert(namespace.inode);
            assert_alert!(alert, { "holders/0/pid" => perl.pid() });
        }
        // A scan finds the holders a moment after the bind; the next event has them.
        let both = |alert: &Value| {
            let holders = alert["holders"].as_array().unwrap();
            let pids: Vec<u64> = holders
                .iter()
                .filter_map(|one| one["pid"].as_u64())
                .collect();
            pids == [u64::from(perl.pid()), u64::from(child)]
        };
        let mut accept;
        loop {
            drop(std::net::TcpStream::connect("127.0.0.1:976").unwrap());
            accept = monitor.alert(namespace.inode);
            assert_alert!(accept, { "event" => "accept", "process/pid" => perl.pid() });
            if both(&accept) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let listed = crate::support::listed(namespace.inode, &[]);
        assert_eq!(listed.len(), 1);
        assert!(both(&listed[0]), "{listed:?}");
        perl.resume();
        perl.wait();
    });
}

#[test]
fn binder_and_holder_of_an_activated_service_are_distinguished() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        // Binds, waits for the first client, and executes the service.
        let mut service = Command::new("systemd-socket-activate")
            .args(["-l", "127.0.0.1:976", "/usr/bin/perl", "-e"])
            .arg("open(my $s, '+<&=', 3) or die; accept(my $c, $s) while 1")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for event in ["bind", "listen"] {
            let alert = monitor.alert(namespace.inode);
            assert_alert!(alert, { "event" => event, "process/pid" => service.id() });
        }
        let exe = |process: &Value| process["exe"].as_str().unwrap_or("").to_owned();
        // Until a scan has seen who serves now, it is the binder's.
        loop {
            drop(std::net::TcpStream::connect("127.0.0.1:976").unwrap());
            let alert = monitor.alert(namespace.inode);
            if alert["event"] == "handover" {
                assert!(exe(&alert["process"]).contains("perl"), "{alert}");
                break;
            }
            assert!(
                exe(&alert["process"]).ends_with("systemd-socket-activate"),
                "{alert}"
            );
            // The holders of a scan are used for up to five seconds.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        drop(std::net::TcpStream::connect("127.0.0.1:976").unwrap());
        let accept = monitor.alert(namespace.inode);
        assert!(exe(&accept["process"]).contains("perl"), "{accept}");
        service.kill().unwrap();
        service.wait().unwrap();
    });
}

/// Perl that shows where its arguments are (`arg_start` in proc_pid_stat(5)), and waits for a line.
const SHOW: &str = "$| = 1; open(my $f, '<', '/proc/self/stat') or die; my $stat = <$f>; \
    $stat =~ s/.*\\) //; my @stat = split ' ', $stat; print \"$stat[45]\\n\"; <STDIN>; close $s;";

#[test]
fn a_program_executed_in_the_same_process_is_reported_as_itself() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| {
            let path = directory.path().join(name);
            copy_program(Path::new("/usr/bin/perl"), &path);
            path.to_str().unwrap().to_owned()
        });
        // Another program, then the same with another argument. What lies above the arguments has the
        // same length each time, so that they do not move. Last, prctl(PR_SET_MM, PR_SET_MM_MAP) ends
        // them after the first.
        let script = format!(
            "{BIND} {SHOW} my %next = (1 => ['{b}', 2], 2 => ['{b}', 3]); \
             if (my $next = $next{{$ARGV[0]}}) {{ \
             exec {{ $next->[0] }} $next->[0], $0, $next->[1]; die }} \
             my $map = pack('Q12 L2', @stat[23, 24, 42 .. 44], syscall(12, 0), @stat[25, 45], \
             $stat[45] + length($^X) + 1, @stat[47, 48], 0, 0, 0xffffffff); \
             syscall(157, 35, 14, $map, length $map, 0) == 0 or die $!; {BIND} {SHOW}"
        );
        let file = directory.path().join("script");
        fs::write(&file, script).unwrap();
        let mut perl = Helper::start(
            Command::new("setarch")
                .args(["-R", &a])
                .args([&file, Path::new("1")]),
        );
        let mut places = Vec::new();
        for (path, cmdline) in [
            (&a, json!([a, file, "1"])),
            (&b, json!([b, file, "2"])),
            (&b, json!([b, file, "3"])),
            (&b, json!([b])),
        ] {
            let place = perl.line();
            assert_ne!(place, "", "{cmdline}");
            places.push(place);
            let bind = monitor.alert(namespace.inode);
            perl.resume();
            let close = monitor.alert(namespace.inode);
            let program = fs::metadata(path).unwrap();
            for (alert, event) in [(&bind, "bind"), (&close, "close")] {
                assert_alert!(alert, {
                    "event" => event,
                    "process/pid" => perl.pid(),
                    "process/exe" => path.as_str(),
                    "process/exe_device" => program.dev(),
                    "process/exe_inode" => program.ino(),
                    "process/verified/exe" => "inode",
                    "process/cmdline" => cmdline,
                });
            }
        }
        perl.wait();
        places.dedup();
        assert_eq!(places.len(), 1, "the arguments move: {places:?}");
    });
}

#[test]
fn a_path_that_the_process_can_choose_is_not_verified() {
    in_namespace(|namespace| {
        let start = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        fs::write(start, "0").unwrap();
        let monitor = Monitor::start(&[]);
        let directory = tempfile::tempdir().unwrap();
        let perl = fs::canonicalize("/usr/bin/perl").unwrap();
        let copy = directory.path().join("copy");
        copy_program(&perl, &copy);
        let shown = perl.to_str().unwrap();
        let plain = format!("exec {shown} -e \"$SCRIPT\"");
        let bound = format!("mount --bind {} {shown}; {plain}", copy.display());
        // A process of the host can execute that file by the root directory of the other.
        let wait = "echo ready; exec sleep 1000";
        let mount = format!("mount --bind {} {shown}; {wait}", copy.display());
        let mut other =
            Helper::start(Command::new("unshare").args(["--mount", "sh", "-ec", &mount]));
        other.wait_for("ready");
        let abroad = format!("exec /proc/{}/root{shown} -e \"$SCRIPT\"", other.pid());
        for (what, launcher, script, file, verified) in [
            ("the host", "env", &plain, &perl, true),
            ("mounts of its own", "unshare --mount", &plain, &perl, true),
            ("another file", "unshare --mount", &bound, &copy, false),
            ("another's file", "env", &abroad, &copy, false),
            ("users of its own", "unshare --user", &plain, &perl, false),
            ("users and mounts", "unshare -Urm", &bound, &copy, false),
        ] {
            let mut words = launcher.split(' ');
            let mut process = Helper::start(
                Command::new(words.next().unwrap())
                    .args(words)
                    .args(["sh", "-ec", script])
                    .env("SCRIPT", format!("{BIND} {SHOW}")),
            );
            process.line();
            let bind = monitor.alert(namespace.inode);
            let listed = crate::support::listed(namespace.inode, &[]);
            process.resume();
            process.wait();
            monitor.alert(namespace.inode);
            let file = fs::metadata(file).unwrap();
            for alert in [&bind, &listed[0]] {
                assert_eq!(alert["process"]["exe"], shown, "{what}");
                assert_eq!(alert["process"]["exe_device"], file.dev(), "{what}");
                assert_eq!(alert["process"]["exe_inode"], file.ino(), "{what}");
                assert_eq!(
                    alert["process"]["verified"]["exe"] == "inode",
                    verified,
                    "{what}: {alert}"
                );
            }
        }
    });
}
