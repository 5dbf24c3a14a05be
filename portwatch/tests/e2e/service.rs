//! What the service manager is sent, what the journal gets, and what packages take from the program.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::{
        fd::AsRawFd as _,
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::rules::file;
use crate::support::{Cgroup, Monitor, binary, in_namespace, run};

const TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn the_service_manager_learns_when_the_monitor_is_armed_alive_reloading_and_stopping() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let message = || {
        let mut bytes = [0; 4096];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let next = |is_it: &dyn Fn(&str) -> bool| {
        std::iter::repeat_with(message)
            .find(|one| is_it(one))
            .unwrap()
    };
    let (_directory, config) = file("");
    let monitor = Monitor::spawn(
        Command::new(binary())
            .args(["run", "--format", "json", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "200000"),
    );
    let ready = message();
    assert!(ready.starts_with("READY=1\nSTATUS=armed: "), "{ready}");
    for _ in 0..3 {
        assert_eq!(message(), "WATCHDOG=1\n");
    }
    monitor.signal(Signal::SIGHUP);
    let reloading = next(&|one| one != "WATCHDOG=1\n");
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    let ready = next(&|one| one != "WATCHDOG=1\n");
    assert!(ready.starts_with("READY=1\nSTATUS=reloaded "), "{ready}");
    fs::write(&config, "[[rule]]\n").unwrap();
    monitor.signal(Signal::SIGHUP);
    next(&|one| one.starts_with("RELOADING=1\n"));
    let ready = next(&|one| one != "WATCHDOG=1\n");
    assert!(
        ready.starts_with("READY=1\nSTATUS=reload failed"),
        "{ready}"
    );
    monitor.signal(Signal::SIGTERM);
    next(&|one| one == "STOPPING=1\n");
}

#[test]
fn a_monitor_that_does_not_read_the_ring_is_not_alive() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let monitor = Monitor::spawn(
        Command::new(binary())
            .args(["run", "--format", "json", "--config", "/dev/null"])
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "200000"),
    );
    monitor.signal(Signal::SIGSTOP);
    let mut bytes = [0; 4096];
    while manager.recv(&mut bytes).is_ok() {}
    monitor.signal(Signal::SIGCONT);
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert!(manager.recv(&mut bytes).is_ok());
}

#[test]
fn in_the_journal_each_line_has_its_priority() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("journal");
        let (reader, writer) = std::io::pipe().unwrap();
        let pipe = fs::metadata(format!("/proc/self/fd/{}", writer.as_raw_fd())).unwrap();
        let mut monitor = Command::new(binary())
            .args(["run", "--config", "/dev/null", "--no-aggregate", "--cgroup"])
            .arg(cgroup.path())
            .env("JOURNAL_STREAM", format!("{}:{}", pipe.dev(), pipe.ino()))
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut armed = String::new();
        let mut stderr = BufReader::new(monitor.stderr.take().unwrap());
        stderr.read_line(&mut armed).unwrap();
        // It is another stream.
        assert!(armed.starts_with("portwatch: armed"), "{armed}");
        cgroup.perl(
            "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die; listen($s, 1) or die",
        );
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        for (priority, event) in [("<5>", " bind "), ("<4>", " listen "), ("<5>", " close ")] {
            let line = lines.next().unwrap();
            assert!(line.starts_with(priority) && line.contains(event), "{line}");
        }
        kill(Pid::from_raw(monitor.id() as i32), Signal::SIGTERM).unwrap();
        monitor.wait().unwrap();
    });
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let help = run(&["--help"]).stdout;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .map_while(|line| line.split_ascii_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"run") && commands.contains(&"completions"));
    for shell in ["bash", "fish", "zsh"] {
        let script = run(&["completions", shell]).stdout;
        for command in &commands {
            assert!(script.contains(command), "{command} for {shell}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let finished = run(&["man", directory.path().to_str().unwrap()]);
    assert!(finished.status.success(), "{}", finished.stderr);
    for command in &commands {
        let page = directory.path().join(format!("portwatch-{command}.8"));
        let page = fs::read_to_string(page).unwrap();
        assert!(page.contains(".SH DESCRIPTION"), "{command}");
    }
    assert!(directory.path().join("portwatch.8").exists());
}

#[test]
fn a_demo_is_an_alert() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let finished = run(&["demo"]);
        assert!(finished.status.success(), "{}", finished.stderr);
        assert!(
            finished.stdout.contains("127.0.0.1:976"),
            "{}",
            finished.stdout
        );
        let events: Vec<String> = monitor
            .alerts(namespace.inode, 4)
            .iter()
            .map(|alert| alert["event"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(events, ["bind", "listen", "accept", "close"]);
        let listener = std::net::TcpListener::bind("127.0.0.1:976").unwrap();
        let finished = run(&["demo"]);
        assert_eq!(finished.status.code(), Some(1));
        assert!(
            finished.stderr.contains("portwatch explain 976"),
            "{}",
            finished.stderr
        );
        drop(listener);
    });
}

/// Scheduling policy and real-time priority of a thread (proc_pid_stat(5), fields 41 and 40).
fn policy(pid: u32, tid: &str) -> (u32, u32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[38].parse().unwrap(), fields[37].parse().unwrap())
}

fn eventually(what: &str, is_it: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_it() {
        assert!(began.elapsed() < TIMEOUT, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_ring_is_read_with_real_time_priority_but_not_under_a_flood() {
    const REAL_TIME: (u32, u32) = (libc::SCHED_RR as u32, 1);
    const ORDINARY: (u32, u32) = (libc::SCHED_OTHER as u32, 0);
    in_namespace(|_| {
        let cgroup = Cgroup::new("priority");
        let path = cgroup.path().to_str().unwrap();
        let monitor = Monitor::start(&["--cgroup", path, "--health-interval", "1"]);
        let pid = monitor.pid();
        let main = pid.to_string();
        eventually("real-time priority", || policy(pid, &main) == REAL_TIME);
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        for thread in threads {
            let tid = thread.file_name().into_string().unwrap();
            if tid != main {
                assert_eq!(policy(pid, &tid), ORDINARY, "{tid}");
            }
        }
        let flood = cgroup.start_perl(FLOOD);
        eventually("ordinary under a flood", || policy(pid, &main) == ORDINARY);
        drop(flood);
        eventually("real-time after it", || policy(pid, &main) == REAL_TIME);

        let monitor = Monitor::start(&["--cgroup", path, "--no-realtime"]);
        let pid = monitor.pid();
        assert_eq!(policy(pid, &pid.to_string()), ORDINARY);
    });
}

/// Binds and closes without end; the monitor prints each.
const FLOOD: &str = "use Socket; while (1) { socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
     bind($s, sockaddr_in(976, INADDR_LOOPBACK)) }";
