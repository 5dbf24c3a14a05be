//! The paths by which a socket gets to a port, each as a program that goes it: for
//! `portwatch doctor --self-test`, and for the tests that fill docs/coverage.md.
//!
//! A path runs in a process and a network namespace of its own, does the real thing on port 976,
//! and says which alerts that must give; [`runner`] compares.

mod handover;
mod ia32;
mod kernel_sockets;
mod namespaces;
mod plain;
mod rewrite;
pub mod runner;
mod script;
mod silent;
mod uring;

pub use self::script::{Expected, Line, drive};
use self::script::{Script, Stop};

/// One way to a port.
pub struct Path {
    /// Its name, in tables and on the command line.
    pub name: &'static str,
    drive: fn(&mut Script) -> Result<(), Stop>,
}

const fn path(name: &'static str, drive: fn(&mut Script) -> Result<(), Stop>) -> Path {
    Path { name, drive }
}

/// Every path, in the order of the tables.
pub const ALL: &[Path] = &[
    path("TCP over IPv4, loopback", plain::tcp_ipv4),
    path("TCP over IPv4, wildcard", plain::tcp_ipv4_wildcard),
    path("TCP over IPv6, loopback", plain::tcp_ipv6),
    path(
        "TCP over IPv6, dual-stack reached over IPv6",
        plain::tcp_ipv6_wildcard,
    ),
    path(
        "TCP over IPv6, dual-stack reached over IPv4",
        plain::tcp_dual_stack,
    ),
    path("UDP over IPv4", plain::udp_ipv4),
    path("UDP over IPv4, wildcard", plain::udp_ipv4_wildcard),
    path("UDP over IPv6", plain::udp_ipv6),
    path("UDP over IPv6, dual-stack", plain::udp_ipv6_wildcard),
    path("UDP-Lite over IPv4", plain::udplite_ipv4),
    path("UDP-Lite over IPv6", plain::udplite_ipv6),
    path("MPTCP, MPTCP client", plain::mptcp),
    path("MPTCP, TCP client", plain::mptcp_fallback),
    path("io_uring bind and listen", uring::bind_and_listen),
    path(
        "io_uring bind and listen, SQPOLL",
        uring::bind_and_listen_sqpoll,
    ),
    path("io_uring accept", uring::accept),
    path("SCTP listen", plain::sctp),
    path("listen without bind", plain::listen_without_bind),
    path(
        "bind with IP_BIND_ADDRESS_NO_PORT",
        plain::bind_address_no_port,
    ),
    path("32-bit system calls", ia32::socketcall),
    path("SO_REUSEPORT, two sockets", plain::reuse_port),
    path("SO_REUSEADDR, bound again", plain::reuse_address),
    path("closed and bound again at once", plain::rebind),
    path("bound and never used", plain::bound_and_unused),
    path("bound, then connected outwards", plain::bound_and_connected),
    path(
        "shut down, then listening again",
        plain::shut_down_and_again,
    ),
    path("a program that exits at once", handover::exits_at_once),
    path("inherited through fork", handover::fork_inherits),
    path("inherited through exec", handover::exec_inherits),
    path("handed over by SCM_RIGHTS", handover::scm_rights),
    path("taken by pidfd_getfd", handover::pidfd_getfd),
    path("socket activation by systemd", handover::socket_activation),
    path(
        "another network namespace",
        namespaces::other_network_namespace,
    ),
    path("rootless user and network namespace", namespaces::rootless),
    path(
        "not root, ip_unprivileged_port_start lowered",
        namespaces::unprivileged,
    ),
    path("a socket of the kernel's own: VXLAN", kernel_sockets::vxlan),
    path(
        "bind rewritten by another BPF program",
        rewrite::rewritten_bind,
    ),
    path("silent: address in use", silent::address_in_use),
    path("silent: permission denied", silent::permission_denied),
    path("silent: raw socket", silent::raw),
    path("silent: ping socket", silent::ping),
    path("silent: AF_UNIX", silent::unix),
    path("silent: vsock", silent::vsock),
    path("silent: assigned ports", silent::assigned),
    path("silent: port 0 and ports from 1024 up", silent::high),
];

#[cfg(test)]
mod tests {
    /// The outcomes are `cargo xtask vm`'s to check; here, that no path is missing.
    #[test]
    fn docs_coverage_lists_every_path_in_order() {
        let page = include_str!("../../../docs/coverage.md");
        let rows: Vec<&str> = page
            .lines()
            .skip_while(|line| !line.starts_with("| path "))
            .skip(2)
            .map_while(|line| line.strip_prefix("| "))
            .filter_map(|line| line.split(" |").next())
            .collect();
        let paths: Vec<&str> = super::ALL.iter().map(|path| path.name).collect();
        assert_eq!(
            rows, paths,
            "docs/coverage.md is stale: run `cargo xtask vm --write`"
        );
    }
}
