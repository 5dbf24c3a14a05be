//! A sensor that somebody detaches.

use std::{
    fs, io,
    net::UdpSocket,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use serde_json::json;

use crate::{
    assert_alert,
    support::{Agent, in_namespace},
};

const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_DETACH: libc::c_long = 34;

/// One command of bpf(2) whose attributes are one number in front.
fn bpf(command: libc::c_long, number: u32) -> libc::c_long {
    let attributes = [number, 0, 0, 0];
    // SAFETY: the kernel reads the sixteen bytes, which outlive the call.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 16) }
}

/// Detaches that link, as `bpftool link detach` does.
fn detach(link: u32) {
    let fd = bpf(BPF_LINK_GET_FD_BY_ID, link);
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel made this descriptor for us just now.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let result = bpf(BPF_LINK_DETACH, fd.as_raw_fd() as u32);
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// The ids of the links that a process holds, from its descriptors' fdinfo.
fn links(pid: u32) -> Vec<u32> {
    let folder = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    folder
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .filter_map(|info| {
            let id = info
                .lines()
                .find_map(|line| line.strip_prefix("link_id:"))?;
            Some(id.trim().parse().unwrap())
        })
        .collect()
}

#[test]
fn what_is_detached_is_told_and_attached_again() {
    in_namespace(|namespace| {
        let agent = Agent::start(&["--health-interval", "1"]);
        let links = links(agent.pid());
        assert_eq!(links.len(), 4, "{links:?}");
        for link in links {
            detach(link);
        }
        for _ in 0..4 {
            let alert = agent.health();
            assert_alert!(alert, { "severity" => "warning", "port" => json!(null), "process" => json!(null) });
            let detail = alert["detail"].as_str().unwrap();
            assert!(
                detail.ends_with("was detached, and is attached again"),
                "{detail}"
            );
        }
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        for event in ["bind", "close"] {
            assert_alert!(agent.alert(namespace.inode), { "event" => event });
        }
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}
