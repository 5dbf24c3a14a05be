//! The transports that this kernel has registered.
#![forbid(unsafe_code)]

use std::fs;

use crate::model::Transport;

/// The transports in `/proc/net/protocols` of the calling thread's network namespace, in the order
/// of [`Transport::ALL`]. Opening a socket instead would make the kernel load modules.
#[must_use]
pub fn registered() -> Vec<Transport> {
    let table = fs::read_to_string("/proc/thread-self/net/protocols").unwrap_or_default();
    let names: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .collect();
    Transport::ALL
        .into_iter()
        .filter(|transport| match transport {
            Transport::Tcp | Transport::Udp => true,
            Transport::UdpLite => names.contains(&"UDP-Lite"),
            Transport::Sctp => names.contains(&"SCTP"),
            Transport::Dccp => names.contains(&"DCCP"),
        })
        .collect()
}
