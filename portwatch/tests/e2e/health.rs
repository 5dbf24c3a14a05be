//! Hooks that somebody detaches.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    assert_alert,
    support::{Cgroup, Monitor, REBIND, bpf, in_namespace},
};

/// Detaches a link, as `bpftool link detach` does.
fn detach(link: u32) {
    let fd = bpf::open(bpf::BPF_LINK_GET_FD_BY_ID, link);
    let result = bpf::bpf(bpf::BPF_LINK_DETACH, fd.as_raw_fd() as u32);
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// The ids of the BPF links that a process has open.
fn links(pid: u32) -> Vec<u32> {
    bpf::ids(pid, "link_id:")
}

#[test]
fn detached_hooks_are_reported_and_attached_again() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&["--health-interval", "1"]);
        let links = links(monitor.pid());
        assert_eq!(links.len(), 4, "{links:?}");
        for link in links {
            detach(link);
        }
        for _ in 0..4 {
            let alert = monitor.health();
            assert_alert!(alert, { "severity" => "warning", "port" => json!(null), "process" => json!(null) });
            let detail = alert["detail"].as_str().unwrap();
            assert!(
                detail.ends_with("was detached, and is attached again"),
                "{detail}"
            );
        }
        // Those that were detached do not stay open.
        let after = self::links(monitor.pid());
        assert_eq!(after.len(), 4, "{after:?}");
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        for event in ["bind", "close"] {
            assert_alert!(monitor.alert(namespace.inode), { "event" => event });
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn what_happened_while_hooks_were_detached_is_reported_once_they_are_attached_again() {
    // A stopped agent does not wait for the next check.
    for (stopped, interval) in [(false, "3"), (true, "3600")] {
        in_namespace(|namespace| {
            // What happens elsewhere on this host would cause scans.
            let cgroup = Cgroup::new(&format!("gap-{stopped}"));
            let path = cgroup.path().to_str().unwrap();
            let monitor = Monitor::start(&["--health-interval", interval, "--cgroup", path]);
            let mut program = cgroup.start_perl(&format!(
                "{REBIND} $| = 1; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
                 rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); <STDIN>; close $s; \
                 socket($s, PF_INET, SOCK_STREAM, 0) or die; \
                 rebind($s, sockaddr_in(977, INADDR_LOOPBACK)); listen($s, 5) or die; \
                 print \"done\\n\"; <STDIN>"
            ));
            let bind = monitor.alert(namespace.inode);
            assert_alert!(bind, { "event" => "bind", "origin" => "live" });
            // The scan that looks for its holders must not be the one that ends the gap.
            std::thread::sleep(std::time::Duration::from_secs(1));
            if stopped {
                monitor.signal(Signal::SIGSTOP);
            } else {
                // The next check is an interval after this one.
                detach(links(monitor.pid())[0]);
                monitor.health();
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
            for link in links(monitor.pid()) {
                detach(link);
            }
            program.resume();
            program.wait_for("done");
            if stopped {
                monitor.signal(Signal::SIGCONT);
            }
            let listen = monitor.alert(namespace.inode);
            assert_alert!(listen, {
                "event" => "listen",
                "port" => 977,
                "origin" => "snapshot",
                "process/pid" => program.pid(),
            });
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => "close",
                "origin" => "snapshot",
                "socket/cookie" => bind["socket"]["cookie"],
            });
            program.resume();
            program.wait();
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => "close",
                "socket/cookie" => listen["socket"]["cookie"],
            });
            monitor.stop_without_more(namespace.inode);
        });
    }
}
