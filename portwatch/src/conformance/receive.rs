//! Datagrams: the first from each address.

#![forbid(unsafe_code)]

use std::{fs, net::SocketAddr};

use nix::sched::{CloneFlags, setns};
use socket2::Type;

use super::{
    plain::{at, local_address, open},
    script::{Script, Stop, enter_namespace},
};
use crate::model::{
    EventKind::{Bind, Close},
    Transport,
};

/// A socket of that transport at `local`, and one that sends to it at `to`.
struct Case {
    transport: Transport,
    local: &'static str,
    to: &'static str,
    is_connected: bool,
}

const CASE: Case = Case {
    transport: Transport::Udp,
    local: "127.0.0.1",
    to: "127.0.0.1",
    is_connected: false,
};

fn receive(script: &mut Script, case: &Case) -> Result<(), Stop> {
    let protocol = (case.transport == Transport::UdpLite).then_some(libc::IPPROTO_UDPLITE);
    let (local, to) = (at(case.local)?, at(case.to)?);
    let server = open(local, Type::DGRAM, protocol)?;
    if local.is_ipv6() {
        server.set_only_v6(false)?;
    }
    let client = open(to, Type::DGRAM, protocol)?;
    client.bind(&SocketAddr::new(to.ip(), 0).into())?;
    let alerts = script.socket(case.transport, local);
    server.bind(&local.into())?;
    alerts.expect(Bind);
    if case.is_connected {
        server.connect(&client.local_addr()?)?;
    }
    alerts.expect_receive(to.ip(), local_address(&client)?);
    // Datagrams are seen only some time after the bind; those after the first are counted.
    script.wait_while(|| client.send_to(b"datagram", &to.into()).map(drop))?;
    drop(server);
    alerts.expect(Close);
    Ok(())
}

pub(super) fn ipv4(script: &mut Script) -> Result<(), Stop> {
    receive(script, &CASE)
}

pub(super) fn ipv4_wildcard(script: &mut Script) -> Result<(), Stop> {
    let local = "0.0.0.0";
    receive(script, &Case { local, ..CASE })
}

pub(super) fn ipv6(script: &mut Script) -> Result<(), Stop> {
    let (local, to) = ("::1", "::1");
    receive(script, &Case { local, to, ..CASE })
}

pub(super) fn dual_stack(script: &mut Script) -> Result<(), Stop> {
    let local = "::";
    receive(script, &Case { local, ..CASE })
}

pub(super) fn connected(script: &mut Script) -> Result<(), Stop> {
    let is_connected = true;
    receive(
        script,
        &Case {
            is_connected,
            ..CASE
        },
    )
}

pub(super) fn udplite(script: &mut Script) -> Result<(), Stop> {
    let transport = Transport::UdpLite;
    receive(script, &Case { transport, ..CASE })
}

/// In a network namespace that the monitor has no event from yet.
pub(super) fn other_network_namespace(script: &mut Script) -> Result<(), Stop> {
    let before = fs::File::open("/proc/self/ns/net")?;
    enter_namespace()?;
    script.add_namespace();
    let outcome = ipv4(script);
    setns(before, CloneFlags::CLONE_NEWNET)?;
    outcome
}
