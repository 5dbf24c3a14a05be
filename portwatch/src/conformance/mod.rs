//! The conformance suite: each way in which a socket gets a port, as a scenario. Used by
//! `portwatch doctor --self-test` and by the test that fills docs/coverage.md.
//!
//! A scenario runs in its own process and network namespace, makes the real system calls on
//! port 976, and says which alerts the monitor must print; [`runner`] compares.

mod bpf;
mod connects;
mod denied;
mod handover;
mod ia32;
mod kernel_sockets;
mod mptcp;
mod namespaces;
mod netlink;
mod no_alert;
mod observed;
mod plain;
mod receive;
mod rewrite;
pub mod runner;
mod script;
mod sessions;
mod steered;
mod uring;

pub use self::script::{Expected, Line, run_scenario};
use self::script::{Script, Stop};

/// One way in which a socket gets a port.
pub struct Scenario {
    /// Its name, in tables and on the command line.
    pub name: &'static str,
    run: fn(&mut Script) -> Result<(), Stop>,
}

const fn scenario(name: &'static str, run: fn(&mut Script) -> Result<(), Stop>) -> Scenario {
    Scenario { name, run }
}

/// All scenarios, in the order of the tables.
pub const ALL: &[Scenario] = &[
    scenario("TCP over IPv4, loopback", plain::tcp_ipv4),
    scenario("TCP over IPv4, wildcard", plain::tcp_ipv4_wildcard),
    scenario("TCP over IPv6, loopback", plain::tcp_ipv6),
    scenario(
        "TCP over IPv6, dual-stack reached over IPv6",
        plain::tcp_ipv6_wildcard,
    ),
    scenario(
        "TCP over IPv6, dual-stack reached over IPv4",
        plain::tcp_dual_stack,
    ),
    scenario("UDP over IPv4", plain::udp_ipv4),
    scenario("UDP over IPv4, wildcard", plain::udp_ipv4_wildcard),
    scenario("UDP over IPv6", plain::udp_ipv6),
    scenario("UDP over IPv6, dual-stack", plain::udp_ipv6_wildcard),
    scenario("UDP-Lite over IPv4", plain::udplite_ipv4),
    scenario("UDP-Lite over IPv6", plain::udplite_ipv6),
    scenario("datagram over IPv4", receive::ipv4),
    scenario("datagram over IPv4, wildcard", receive::ipv4_wildcard),
    scenario("datagram over IPv6", receive::ipv6),
    scenario(
        "datagram over IPv4 to a dual-stack socket",
        receive::dual_stack,
    ),
    scenario("datagram to a connected socket", receive::connected),
    scenario("datagram over UDP-Lite", receive::udplite),
    scenario(
        "datagram in another network namespace",
        receive::other_network_namespace,
    ),
    scenario("MPTCP, MPTCP client", mptcp::plain),
    scenario("MPTCP, TCP client", mptcp::fallback),
    scenario("MPTCP, two paths", mptcp::joined_path),
    scenario("io_uring bind and listen", uring::bind_and_listen),
    scenario(
        "io_uring bind and listen, SQPOLL",
        uring::bind_and_listen_sqpoll,
    ),
    scenario("io_uring accept", uring::accept),
    scenario("SCTP listen", plain::sctp),
    scenario("listen without bind", plain::listen_without_bind),
    scenario(
        "bind with IP_BIND_ADDRESS_NO_PORT",
        plain::bind_address_no_port,
    ),
    scenario("32-bit system calls", ia32::socketcall),
    scenario("SO_REUSEPORT, two sockets", plain::reuse_port),
    scenario("SO_REUSEADDR, bound again", plain::reuse_address),
    scenario("closed and bound again at once", plain::rebind),
    scenario("bound and never used", plain::bound_and_unused),
    scenario("bound, then connected outwards", connects::made),
    scenario("connected outwards, rejected", connects::rejected),
    scenario(
        "connected outwards, rejected, non-blocking",
        connects::rejected_nonblocking,
    ),
    scenario(
        "connected outwards, rejected, Fast Open",
        connects::rejected_fast_open,
    ),
    scenario("connected outwards, timed out", connects::timed_out),
    scenario("connected outwards, given up", connects::given_up),
    scenario(
        "connected outwards, rejected, then made",
        connects::rejected_then_made,
    ),
    scenario(
        "connected outwards, rejected, then listening",
        connects::rejected_then_listening,
    ),
    scenario("connected to itself", connects::simultaneous_open),
    scenario("session: in, closed by the peer", sessions::closed_by_peer),
    scenario("session: in, closed by this host", sessions::closed_by_us),
    scenario("session: in, reset by the peer", sessions::reset_by_peer),
    scenario("session: in, reset by this host", sessions::reset_by_us),
    scenario("session: out", sessions::outgoing),
    scenario("session: MPTCP, two paths", mptcp::session_of_two_paths),
    scenario("bound to a device", plain::bound_to_device),
    scenario(
        "shut down, then listening again",
        plain::shut_down_and_again,
    ),
    scenario("a program that exits at once", handover::exits_at_once),
    scenario("inherited through fork", handover::fork_inherits),
    scenario("inherited through exec", handover::exec_inherits),
    scenario("handed over by SCM_RIGHTS", handover::scm_rights),
    scenario("taken by pidfd_getfd", handover::pidfd_getfd),
    scenario("socket activation by systemd", handover::socket_activation),
    scenario(
        "another network namespace",
        namespaces::other_network_namespace,
    ),
    scenario("rootless user and network namespace", namespaces::rootless),
    scenario(
        "not root, ip_unprivileged_port_start lowered",
        namespaces::unprivileged,
    ),
    scenario("a socket of the kernel's own: VXLAN", kernel_sockets::vxlan),
    scenario(
        "bind rewritten by another BPF program",
        rewrite::rewritten_bind,
    ),
    scenario("steered by an sk_lookup program", steered::by_sk_lookup),
    scenario(
        "steered by an sk_lookup program, another socket on the port",
        steered::beside_a_bound_socket,
    ),
    scenario(
        "steered by an sk_lookup program, another listener on the port",
        steered::beside_a_listener,
    ),
    scenario("steered by TPROXY", steered::by_tproxy),
    scenario("denied: TCP over IPv4", denied::tcp_ipv4),
    scenario("denied: TCP over IPv6", denied::tcp_ipv6),
    scenario("denied: TCP over IPv6, mapped IPv4", denied::tcp_mapped),
    scenario("denied: MPTCP", denied::mptcp),
    scenario("denied: UDP over IPv4", denied::udp_ipv4),
    scenario("denied: UDP over IPv6", denied::udp_ipv6),
    scenario("denied: UDP-Lite over IPv4", denied::udplite_ipv4),
    scenario("denied: UDP-Lite over IPv6", denied::udplite_ipv6),
    scenario("denied: TCP, port 0", denied::tcp_automatic),
    scenario("denied: UDP, port 0", denied::udp_automatic),
    scenario("denied: UDP-Lite, port 0", denied::udplite_automatic),
    scenario(
        "not denied: automatic port of connect",
        denied::automatic_of_connect,
    ),
    scenario("silent: address in use", no_alert::address_in_use),
    scenario("silent: permission denied", no_alert::permission_denied),
    scenario("silent: raw socket", no_alert::raw),
    scenario("silent: ping socket", no_alert::ping),
    scenario("silent: AF_UNIX", no_alert::unix),
    scenario("silent: vsock", no_alert::vsock),
    scenario("silent: assigned ports", no_alert::assigned),
    scenario("silent: port 0 and ports from 1024 up", no_alert::high),
];

#[cfg(test)]
mod tests {
    // `cargo xtask vm` checks the outcomes; this only that no scenario is missing.
    #[test]
    fn coverage_page_lists_all_scenarios_in_order() {
        let page = include_str!("../../../docs/coverage.md");
        let rows: Vec<&str> = page
            .lines()
            .skip_while(|line| !line.starts_with("| scenario "))
            .skip(2)
            .map_while(|line| line.strip_prefix("| "))
            .filter_map(|line| line.split(" |").next())
            .collect();
        let names: Vec<&str> = super::ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(
            rows, names,
            "docs/coverage.md is out of date: run `cargo xtask vm --write`"
        );
    }
}
