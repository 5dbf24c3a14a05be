//! A ring that is too small, and a reader that stalls: nothing goes missing without a word.

use std::{
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{Agent, Cgroup, binary, in_namespace};

/// Binds and closes that many UDP sockets, and does nothing else.
fn binds(count: usize) -> String {
    format!(
        "use Socket; for (1..{count}) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die; close $s }}"
    )
}

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
        // 4,096 bytes hold 36 records of 104 bytes and 8 of header.
        assert_eq!((told.len(), losses.len()), (36, 1));
        assert_eq!(lost, 2 * SOCKETS as u64 - 36);
    });
}

#[test]
fn a_reader_that_stalls_does_not_keep_the_agent_from_stopping() {
    in_namespace(|_| {
        let mut agent = Command::new(binary())
            .args(["--format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(agent.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("armed"), "{line}");
        // Some 700 bytes each, into a pipe that holds 64 KiB and that nobody reads.
        for _ in 0..300 {
            drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        }
        kill(Pid::from_raw(agent.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(agent.wait().unwrap().code(), Some(6));
        line.clear();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("its reader stalled"), "{line}");
        assert!(line.contains("alerts are not printed"), "{line}");
    });
}
