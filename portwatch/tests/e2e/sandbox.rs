//! What an armed monitor has given up.

use std::{
    collections::HashMap,
    fs,
    net::{TcpListener, TcpStream},
    process::Command,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    assert_alert,
    support::{Monitor, binary, in_namespace, run},
};

/// CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_PERFMON and CAP_BPF
/// (include/uapi/linux/capability.h).
const KEPT: u64 = 1 << 12 | 1 << 19 | 1 << 2 | 1 << 38 | 1 << 39;

/// CAP_NET_ADMIN and CAP_SYS_ADMIN.
const KEPT_BY_HELPER: u64 = 1 << 12 | 1 << 21;

/// Tests that run in parallel must not fill this monitor's ring.
const RING: &str = "--ring-size=16777216";

/// The lines of a `status` file in /proc.
fn status(path: &str) -> HashMap<String, String> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Checks every thread of a process: capabilities are a thread's own.
fn assert_has_only(pid: u32, kept: u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut checked = 0;
    for task in tasks.flatten() {
        let status = status(task.path().join("status").to_str().unwrap());
        let kept = format!("{kept:016x}");
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(status[set], kept, "{set} of {}", status["Name"]);
        }
        for set in ["CapAmb", "CapInh"] {
            assert_eq!(status[set], "0000000000000000", "{set}");
        }
        assert_eq!(status["NoNewPrivs"], "1");
        assert_eq!(status["Seccomp"], "2");
        checked += 1;
    }
    assert!(checked > 0);
}

/// CAP_NET_BIND_SERVICE.
const KEPT_BY_CANARY: u64 = 1 << 10;

/// Where root may not raise a resource limit, the priority of the monitor takes `CAP_SYS_NICE`.
fn kept() -> u64 {
    const SYS_NICE: u64 = 1 << 23;
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let own = u64::from_str_radix(own.unwrap().trim(), 16).unwrap();
    if own & SYS_RESOURCE == 0 && own & SYS_NICE != 0 {
        KEPT | SYS_NICE
    } else {
        KEPT
    }
}

/// The canary and the helper process of a monitor.
pub fn children(pid: u32) -> [u32; 2] {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children: Vec<u32> = children
        .split_ascii_whitespace()
        .map(|child| child.parse().unwrap())
        .collect();
    // The canary has its name before anything is armed, the helper soon.
    let is_canary = |child: &u32| {
        let comm = fs::read_to_string(format!("/proc/{child}/comm")).unwrap();
        comm.starts_with("portwatch-canar")
    };
    let (canary, helper): (Vec<u32>, Vec<u32>) = children.into_iter().partition(is_canary);
    [canary[0], helper[0]]
}

#[test]
fn an_armed_monitor_and_its_helper_have_only_what_they_need() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        // The first scan, so that its threads and the helper have worked.
        let _listener = TcpListener::bind("127.0.0.1:976").unwrap();
        assert_alert!(monitor.alert(namespace.inode), { "event" => "bind" });
        assert_has_only(monitor.pid(), kept());
        let limits = fs::read_to_string(format!("/proc/{}/limits", monitor.pid())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core"));
        let core: Vec<&str> = core.unwrap().split_ascii_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{core:?}");
        let [canary, helper] = children(monitor.pid());
        assert_has_only(canary, KEPT_BY_CANARY);
        assert_has_only(helper, KEPT_BY_HELPER);
        // They hold neither the monitor's stdout nor a BPF program.
        let open = |process: u32| {
            let files = fs::read_dir(format!("/proc/{process}/fd"))
                .unwrap()
                .flatten();
            let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
            let names = targets.map(|target| target.display().to_string());
            names
                .filter(|name| !name.starts_with("socket:"))
                .collect::<Vec<_>>()
        };
        assert!(open(canary).is_empty(), "{:?}", open(canary));
        let [own] = &*open(helper) else {
            panic!("{:?}", open(helper))
        };
        assert!(own.starts_with("net:"), "{own}");
    });
}

#[test]
fn sockets_of_other_namespaces_are_found_with_their_cookies() {
    in_namespace(|namespace| {
        let listener = TcpListener::bind("127.0.0.1:976").unwrap();
        // In another namespace than the monitor, which is in the test's.
        let monitor = Monitor::spawn(Command::new("nsenter").args([
            &format!("--net=/proc/{}/ns/net", std::process::id()),
            binary().to_str().unwrap(),
            "run",
            "--format=json",
            "--config=/dev/null",
            "--no-aggregate",
            RING,
        ]));
        let found = monitor.alert(namespace.inode);
        assert_alert!(found, { "event" => "listen", "origin" => "snapshot" });
        assert!(found["socket"]["cookie"].is_u64(), "{found}");
        // Marked, although it is older than the monitor: an accept on it names it.
        drop(TcpStream::connect("127.0.0.1:976").unwrap());
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "accept",
            "origin" => "live",
            "socket/cookie" => found["socket"]["cookie"],
        });
        drop(listener);
        assert_alert!(monitor.alert(namespace.inode), { "event" => "close" });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn the_helper_and_the_canary_end_with_the_monitor() {
    let mut monitor = Monitor::start(&[]);
    let children = children(monitor.pid());
    monitor.signal(Signal::SIGKILL);
    // The end of its output: they have none of its descriptors.
    let _ = monitor.finish();
    for child in children {
        let name = || fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        while name().starts_with("portwatch") {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_helper_that_ended_is_reported() {
    let monitor = Monitor::start(&["--health-interval", "1"]);
    let [_, helper] = children(monitor.pid());
    kill(Pid::from_raw(helper as i32), Signal::SIGKILL).unwrap();
    let is_it = |line: &String| line.contains("the helper process has ended");
    let line = std::iter::repeat_with(|| monitor.line()).find(is_it);
    assert!(line.unwrap().contains(r#""severity":"critical""#));
}

#[cfg(feature = "testing")]
#[test]
fn a_denied_system_call_fails_and_is_reported() {
    let mut monitor = Monitor::spawn(
        Command::new(binary())
            .args(["run", "--format", "json", "--config", "/dev/null"])
            .args(["--health-interval", "1"])
            .env("PORTWATCH_TEST_CALL", libc::SYS_execve.to_string()),
    );
    let result = monitor.log_line();
    let denied = "-1 (Operation not permitted (os error 1))";
    assert!(result.contains(denied), "{result}");
    let expected = format!(
        "denied 1 system calls, the first with number {}",
        libc::SYS_execve
    );
    let line = std::iter::repeat_with(|| monitor.line()).find(|line| line.contains(&expected));
    assert!(line.unwrap().contains(r#""severity":"critical""#));
}

#[test]
fn five_capabilities_without_root_are_enough() {
    in_namespace(|namespace| {
        const CAPABILITIES: &str = "+bpf,+perfmon,+net_admin,+sys_ptrace,+dac_read_search";
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups", "--inh-caps"]);
        command.args([CAPABILITIES, "--ambient-caps", CAPABILITIES]);
        // Otherwise the bounding set could not be given up.
        command.args(["--bounding-set", &format!("-all,{CAPABILITIES}")]);
        command.arg(binary());
        command.args([
            "run",
            "--format=json",
            "--config=/dev/null",
            "--no-aggregate",
            // For which it takes a capability or a resource limit.
            "--no-realtime",
            RING,
        ]);
        let mut monitor = Monitor::spawn(&mut command);
        // What is missing; all else is given up.
        let missing = [
            "no canary",
            "read other network namespaces from /proc/PID/net",
        ];
        for expected in missing {
            let line = monitor.log_line();
            assert!(line.contains(expected), "{line}");
        }
        let listener = TcpListener::bind("127.0.0.1:976").unwrap();
        for event in ["bind", "listen"] {
            let alert = monitor.alert(namespace.inode);
            assert_alert!(alert, { "event" => event });
            assert_eq!(alert["process"]["pid"], std::process::id());
        }
        assert_has_only(monitor.pid(), KEPT);
        drop(listener);
        assert_alert!(monitor.alert(namespace.inode), { "event" => "close" });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn without_sandbox_the_monitor_says_so() {
    let mut monitor = Monitor::start(&["--no-sandbox"]);
    let line = monitor.log_line();
    assert!(line.contains("WARNING: --no-sandbox"), "{line}");
    let status = status(&format!("/proc/{}/status", monitor.pid()));
    assert_eq!(status["Seccomp"], "0");
    let pid = monitor.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    // The canary.
    assert_eq!(children.split_ascii_whitespace().count(), 1);
}

#[test]
fn doctor_shows_what_a_monitor_gives_up() {
    let doctor = run(&["doctor"]);
    for name in ["capabilities", "system calls", "helper process", "landlock"] {
        let name = format!("sandbox: {name}");
        assert!(doctor.stdout.contains(&name), "{}", doctor.stdout);
    }
}
