//! A ring that is too small, and a reader that stalls: nothing goes missing without a word.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{Agent, Cgroup, TAKE, binary, binds, in_namespace, perl, run};

#[test]
fn what_found_the_ring_full_is_counted_to_the_last_report() {
    const SOCKETS: usize = 300;
    in_namespace(|_| {
        // Other tests' sockets stay out of this agent's cgroup, so that every report counts.
        let cgroup = Cgroup::new("loss");
        let path = cgroup.path().to_str().unwrap();
        let mut agent = Agent::start(&["--ring-size", "4096", "--cgroup", path]);
        assert!(agent.armed.contains(path), "{}", agent.armed);
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        agent.signal(Signal::SIGSTOP);
        cgroup.perl(&binds(SOCKETS));
        agent.signal(Signal::SIGTERM);
        agent.signal(Signal::SIGCONT);
        let finished = agent.finish();
        assert!(finished.status.success(), "{}", finished.stderr);
        let alerts: Vec<Value> = finished
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let (losses, told): (Vec<&Value>, Vec<&Value>) =
            alerts.iter().partition(|alert| alert["event"] == "loss");
        let lost: u64 = losses
            .iter()
            .filter_map(|alert| alert["lost"].as_u64())
            .sum();
        // A header of 8 bytes before each record: one of 1,576, what perl runs, and reports of 120.
        let fit = (4096 - 1584) / 128;
        assert_eq!((told.len(), losses.len()), (fit, 1));
        assert_eq!(lost, (2 * SOCKETS - fit) as u64);
    });
}

/// Perl that binds UDP sockets on these ports and keeps some; then closes those below 960.
fn takes(ports: &str, kept: &str) -> String {
    format!(
        "{TAKE} my %kept; my %keep = map {{ $_ => 1 }} ({kept}); for my $port ({ports}) {{ \
         socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         take($s, sockaddr_in($port, INADDR_LOOPBACK)); \
         if ($keep{{$port}}) {{ $kept{{$port}} = $s }} else {{ close $s }} }} \
         $| = 1; print \"ready\\n\"; <STDIN>; \
         close $kept{{$_}} for grep {{ $_ < 960 }} keys %kept; print \"closed\\n\"; <STDIN>"
    )
}

#[test]
fn after_a_loss_the_truth_is_told() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("repaired");
        let path = cgroup.path().to_str().unwrap();
        let agent = Agent::start(&["--ring-size", "4096", "--cgroup", path]);
        let held = || -> BTreeSet<u64> {
            let list = run(&["list", "--format", "json"]);
            let here = list
                .stdout
                .lines()
                .map(|line| serde_json::from_str(line).unwrap());
            here.filter(|alert: &Value| alert["socket"]["netns"] == namespace.inode)
                .filter_map(|alert| alert["port"].as_u64())
                .collect()
        };
        // What the alerts say is held, as a reader of them would keep it.
        let mut told: BTreeSet<u64> = BTreeSet::new();
        let read_until =
            |told: &mut BTreeSet<u64>, truth: &BTreeSet<u64>, mut is_loss_due: bool| {
                while told != truth || is_loss_due {
                    let alert: Value = serde_json::from_str(&agent.line()).unwrap();
                    let port = alert["port"].as_u64();
                    match alert["event"].as_str().unwrap() {
                        "loss" => is_loss_due = false,
                        "close" => assert!(told.remove(&port.unwrap()), "not told before: {alert}"),
                        _ => assert!(told.insert(port.unwrap()), "told twice: {alert}"),
                    }
                }
            };
        agent.signal(Signal::SIGSTOP);
        let ports = "(971..988) x 20, 954..970, 1001";
        let mut taker = cgroup.start_perl(&takes(ports, "955..958, 966..970, 1001"));
        taker.wait_for("ready");
        agent.signal(Signal::SIGCONT);
        let truth = BTreeSet::from([955, 956, 957, 958, 966, 967, 968, 969, 970, 1001]);
        assert_eq!(held(), truth);
        read_until(&mut told, &truth, true);

        // And the other way: what is closed while the ring is full.
        agent.signal(Signal::SIGSTOP);
        taker.go_on();
        taker.wait_for("closed");
        cgroup.perl(&binds(300));
        agent.signal(Signal::SIGCONT);
        let truth = BTreeSet::from([966, 967, 968, 969, 970, 1001]);
        assert_eq!(held(), truth);
        read_until(&mut told, &truth, true);
        taker.go_on();
        taker.end();
        read_until(&mut told, &BTreeSet::new(), false);
    });
}

#[test]
fn a_reader_that_stalls_does_not_keep_the_agent_from_stopping() {
    in_namespace(|_| {
        let mut agent = Command::new(binary())
            .args(["--format", "json", "--no-collapse"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(agent.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("armed"), "{line}");
        // Some 700 bytes each, into a pipe that holds 64 KiB and that nobody reads.
        perl(&binds(300));
        kill(Pid::from_raw(agent.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(agent.wait().unwrap().code(), Some(6));
        line.clear();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("its reader stalled"), "{line}");
        assert!(line.contains("alerts are not printed"), "{line}");
    });
}
