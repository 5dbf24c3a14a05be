//! Root changes what the BPF programs and the monitor share: each change is reported and undone, and
//! what was missed is found.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::sandbox::children;
use crate::{
    assert_alert,
    support::{Cgroup, Monitor, REBIND, binary, bpf::Map, cgroup_root, finish, in_namespace},
};

/// The words of the map CONTROL, as 64-bit words: polling and epoch, high watermark, marked sockets,
/// sessions.
const POLLING_AND_EPOCH: usize = 0;
const HIGH_WATERMARK: usize = 1;
const MARKED_SOCKETS: usize = 2;
const SESSIONS: usize = 3;

/// How long a step may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The CPUs of which per-CPU maps have a value.
fn possible_cpus() -> usize {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    let last = possible.trim().rsplit(['-', ',']).next().unwrap();
    last.parse::<usize>().unwrap() + 1
}

/// Reads alerts until one is what is looked for.
fn wait_for(monitor: &Monitor, alerts: &mut Vec<Value>, is_it: impl Fn(&Value) -> bool) {
    let began = Instant::now();
    while !alerts.iter().any(&is_it) {
        if began.elapsed() > TIMEOUT {
            alerts.retain(|alert| alert["event"] == "health");
            panic!("not among the other alerts, nor these: {alerts:?}");
        }
        alerts.push(serde_json::from_str(&monitor.line()).unwrap());
    }
}

fn is_health(alert: &Value, detail: &str) -> bool {
    alert["event"] == "health" && alert["detail"].as_str().unwrap().contains(detail)
}

#[test]
fn what_root_changes_in_the_maps_is_reported_and_undone() {
    type Tamper = fn(&Map);
    // What is changed, how, and what the alert says.
    let cases: [(&str, Tamper, &str); 10] = [
        (
            "WATCHED",
            |map| map.set(&976_u32.to_ne_bytes(), &[0; 4]),
            "the map WATCHED was changed (ports: 1, the first 976)",
        ),
        (
            "CONTROL",
            |map| map.add_to_word(POLLING_AND_EPOCH, 1),
            "CONTROL, polling",
        ),
        (
            "CONTROL",
            |map| map.add_to_word(POLLING_AND_EPOCH, 7 << 32),
            "CONTROL, epoch",
        ),
        (
            "CONTROL",
            |map| map.add_to_word(HIGH_WATERMARK, 0_u64.wrapping_sub(1)),
            "CONTROL, high_watermark",
        ),
        (
            "CONTROL",
            |map| map.add_to_word(MARKED_SOCKETS, 0_u64.wrapping_sub(1)),
            "CONTROL, marked_sockets",
        ),
        (
            "CONTROL",
            |map| map.add_to_word(MARKED_SOCKETS, 1),
            "CONTROL, marked_sockets",
        ),
        (
            "CONTROL",
            |map| map.add_to_word(SESSIONS, 1),
            "CONTROL, sessions",
        ),
        // Beyond what the programs have written: the ring seems full to them.
        (
            "RING",
            |map| map.add_to_word(0, 8),
            "the position in the map RING",
        ),
        // Behind what the agent has read: it is not woken.
        (
            "RING",
            |map| map.add_to_word(0, 0_u64.wrapping_sub(8)),
            "the position in the map RING",
        ),
        (
            "STATS",
            |map| map.set(&[0; 4], &vec![0; possible_cpus() * 48]),
            "STATS",
        ),
    ];
    for (name, tamper, expected) in cases {
        in_namespace(|namespace| {
            // What happens elsewhere on this host would wake the monitor, or count.
            let cgroup = Cgroup::new("tamper");
            let path = cgroup.path().to_str().unwrap();
            let monitor = Monitor::start(&["--health-interval", "1", "--cgroup", path]);
            let script = format!(
                "{REBIND} $| = 1; \
                 socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
                 rebind($s, sockaddr_in(977, INADDR_LOOPBACK)); <STDIN>; \
                 socket(my $t, PF_INET, SOCK_STREAM, 0) or die; \
                 rebind($t, sockaddr_in(976, INADDR_LOOPBACK)); listen($t, 5) or die; \
                 print \"done\\n\"; <STDIN>; close $s; close $t; print \"closed\\n\"; <STDIN>"
            );
            let mut program = cgroup.start_perl(&script);
            assert_alert!(monitor.alert(namespace.inode), { "event" => "bind", "port" => 977 });
            let maps = Map::all(monitor.pid());
            tamper(&maps[name]);
            let tampered = Instant::now();
            program.resume();
            program.wait_for("done");
            let mut alerts = Vec::new();
            wait_for(&monitor, &mut alerts, |alert| is_health(alert, expected));
            println!("{expected}: reported after {:?}", tampered.elapsed());
            let health = alerts.iter().find(|alert| is_health(alert, expected));
            assert_alert!(health.unwrap(), { "severity" => "critical" });
            let is = |event: &'static str, port: u16| {
                move |alert: &Value| {
                    alert["event"] == event
                        && alert["port"] == port
                        && alert["socket"]["netns"] == namespace.inode
                }
            };
            // What happened meanwhile is known, and what happens from now on.
            wait_for(&monitor, &mut alerts, is("listen", 976));
            println!(
                "{expected}: listener reported after {:?}",
                tampered.elapsed()
            );
            program.resume();
            program.wait_for("closed");
            for port in [976, 977] {
                wait_for(&monitor, &mut alerts, is("close", port));
            }
            program.resume();
            program.wait();
            for alert in monitor.stop_all() {
                assert!(!is_health(&alert, "by another program"), "{alert}");
            }
        });
    }
}

#[test]
fn what_the_programs_do_not_report_of_the_canary_is_noticed() {
    // Outside of the watched cgroup, which the canary joins, and for the whole host.
    for within in [true, false] {
        let cgroup = Cgroup::new(&format!("canary-{within}"));
        let path = cgroup.path().to_str().unwrap();
        let arguments = ["--health-interval", "1", "--cgroup", path];
        let monitor = Monitor::start(&arguments[..if within { 4 } else { 2 }]);
        let maps = Map::all(monitor.pid());
        let is_over = AtomicBool::new(false);
        let mut alerts = Vec::new();
        let tampered = Instant::now();
        let (failed, again) = thread::scope(|scope| {
            // Against what each check puts back.
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    maps["CONTROL"].set_byte(0, 1);
                    thread::sleep(Duration::from_micros(100));
                }
            });
            let is_it = |alert: &Value| is_health(alert, "do not wake the monitor");
            while !alerts.iter().any(is_it) && tampered.elapsed() < TIMEOUT {
                alerts.push(serde_json::from_str(&monitor.line()).unwrap());
            }
            let failed = tampered.elapsed();
            is_over.store(true, Ordering::Relaxed);
            wait_for(&monitor, &mut alerts, |alert| {
                is_health(alert, "report everything again")
            });
            (failed, tampered.elapsed())
        });
        println!("agent not woken: reported after {failed:?}, working again after {again:?}");
        let severities = ["do not wake the monitor", "report everything again"].map(|detail| {
            let alert = alerts.iter().find(|alert| is_health(alert, detail));
            alert.unwrap()["severity"].clone()
        });
        assert_eq!(severities, ["critical", "warning"]);
        // Nothing of it is an alert.
        if within {
            alerts.extend(monitor.stop_all());
            assert!(
                alerts.iter().all(|alert| alert["event"] == "health"),
                "{alerts:?}"
            );
            // It does not stay there.
            // Its process can end a moment after the monitor's.
            let stopped = Instant::now();
            while let Err(error) = std::fs::remove_dir(path) {
                assert!(stopped.elapsed() < TIMEOUT, "{error}");
                thread::sleep(Duration::from_millis(1));
            }
            std::fs::create_dir(path).unwrap();
        }
    }
}

#[test]
fn a_cgroup_mounted_over_the_hierarchy_hides_nothing() {
    in_namespace(|namespace| {
        let (covering, other) = (Cgroup::new("covering"), Cgroup::new("other"));
        let root = cgroup_root();
        // In a mount namespace of its own; the monitor sees the cover wherever it looks.
        let script = format!(
            "mount --bind {} {} && exec {} run --format json --no-aggregate --config /dev/null \
             --ring-size 16777216",
            covering.path().display(),
            root.display(),
            binary().display()
        );
        let monitor = Monitor::spawn(Command::new("unshare").args(["-m", "sh", "-c", &script]));
        let line = &monitor.start_line;
        assert!(line.contains("is covered by another mount"), "{line}");
        other.perl(&format!(
            "{REBIND} socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
             rebind($s, sockaddr_in(976, INADDR_LOOPBACK));"
        ));
        for event in ["bind", "close"] {
            assert_alert!(monitor.alert(namespace.inode), { "event" => event, "port" => 976 });
        }
    });
}

#[test]
fn a_watched_cgroup_that_is_made_again_is_watched_again() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("remade");
        let path = cgroup.path().to_str().unwrap();
        let monitor = Monitor::start(&["--health-interval", "1", "--cgroup", path]);
        let mut alerts = Vec::new();
        std::fs::remove_dir(path).unwrap();
        wait_for(&monitor, &mut alerts, |alert| {
            is_health(alert, "was removed: nothing is watched")
        });
        std::fs::create_dir(path).unwrap();
        wait_for(&monitor, &mut alerts, |alert| {
            is_health(alert, "is there again")
        });
        // Of four programs, and of the canary, which could join the first cgroup only.
        let is_attached = |alert: &&Value| is_health(alert, "is attached again");
        while alerts.iter().filter(is_attached).count() < 4 {
            alerts.push(serde_json::from_str(&monitor.line()).unwrap());
        }
        wait_for(&monitor, &mut alerts, |alert| {
            is_health(alert, "can no longer join it")
        });
        cgroup.perl(&format!(
            "{REBIND} socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
             rebind($s, sockaddr_in(976, INADDR_LOOPBACK));"
        ));
        for event in ["bind", "close"] {
            assert_alert!(monitor.alert(namespace.inode), { "event" => event, "port" => 976 });
        }
        for alert in alerts {
            let expected = if is_health(&alert, "again") {
                "warning"
            } else {
                "critical"
            };
            assert_alert!(alert, { "event" => "health", "severity" => expected });
        }
    });
}

#[test]
fn a_canary_that_does_not_answer_is_reported() {
    // Its own, so that what other tests do is not what it prints.
    let cgroup = Cgroup::new("silent");
    let path = cgroup.path().to_str().unwrap();
    let monitor = Monitor::start(&["--health-interval", "1", "--cgroup", path]);
    let [canary, _] = children(monitor.pid());
    kill(Pid::from_raw(canary as i32), Signal::SIGKILL).unwrap();
    let mut alerts = Vec::new();
    wait_for(&monitor, &mut alerts, |alert| {
        is_health(alert, "the canary process does not answer")
    });
}

#[test]
fn a_monitor_in_a_time_namespace_shows_the_host_s_time_and_the_process() {
    in_namespace(|namespace| {
        let monitor = Monitor::spawn(Command::new("unshare").args([
            "--time",
            "--monotonic=100000",
            "--boottime=300000",
            "--fork",
            "--kill-child",
            binary().to_str().unwrap(),
            "run",
            "--format=json",
            "--config=/dev/null",
            "--no-aggregate",
            "--ring-size=16777216",
        ]));
        let before: jiff::Timestamp = jiff::Timestamp::now();
        drop(std::net::UdpSocket::bind("127.0.0.1:976").unwrap());
        let after = jiff::Timestamp::now();
        let bind = monitor.alert(namespace.inode);
        let time: jiff::Timestamp = bind["time"].as_str().unwrap().parse().unwrap();
        // The clocks are read one after the other.
        let jitter = jiff::SignedDuration::from_millis(100);
        assert!(
            (before - jitter..=after + jitter).contains(&time),
            "{before} {time} {after}"
        );
        let exe = std::env::current_exe().unwrap();
        assert_alert!(bind, {
            "event" => "bind",
            "process/pid" => std::process::id(),
            "process/exe" => exe.to_str().unwrap(),
        });
    });
}

#[test]
fn a_monitor_without_sys_ptrace_or_sys_says_so_at_start() {
    let without = |prefix: &[&str], arguments: &[&str]| {
        let mut command = Command::new(prefix[0]);
        command
            .args(&prefix[1..])
            .args([binary().to_str().unwrap(), "run"]);
        command
            .args(["--format=json", "--config=/dev/null"])
            .args(arguments);
        command
    };
    in_namespace(|namespace| {
        let prefix = ["setpriv", "--bounding-set", "-sys_ptrace"];
        let mut monitor = Monitor::spawn(&mut without(&prefix, &["--no-aggregate"]));
        let line = monitor.log_line();
        assert!(line.contains("without CAP_SYS_PTRACE"), "{line}");
        drop(std::net::UdpSocket::bind("127.0.0.1:976").unwrap());
        for event in ["bind", "close"] {
            assert_alert!(monitor.alert(namespace.inode), { "event" => event });
        }
    });
    // It reads there which CPUs there are; without it nothing is armed.
    let prefix = [
        "unshare",
        "-m",
        "sh",
        "-c",
        "umount -l /sys && exec \"$0\" \"$@\"",
    ];
    let finished = finish(&mut without(&prefix, &[]));
    assert!(!finished.status.success());
    let text = &finished.stderr;
    assert!(text.contains("is /sys mounted?"), "{text}");
}
