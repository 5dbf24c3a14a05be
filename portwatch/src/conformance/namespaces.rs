//! Other network namespaces, and users without privileges.

#![forbid(unsafe_code)]

use std::fs;

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, setgid, setuid},
};

use super::{
    handover::in_child,
    plain::{at, stream, tcp_ipv4},
    script::{Script, Stop, enter_namespace, loopback_up},
};
use crate::model::{
    EventKind::{Bind, Close, Listen},
    Transport,
};

/// A network namespace that the monitor has no event from yet.
pub(super) fn other_network_namespace(script: &mut Script) -> Result<(), Stop> {
    let before = fs::File::open("/proc/self/ns/net")?;
    enter_namespace()?;
    script.add_namespace();
    let outcome = tcp_ipv4(script);
    nix::sched::setns(before, CloneFlags::CLONE_NEWNET)?;
    outcome
}

/// `unshare --user --net` as an unprivileged user: root inside, nobody outside.
pub(super) fn rootless(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let alerts = script.socket(Transport::Tcp, local);
    let child = in_child(|| {
        setgid(Gid::from_raw(65_534))?;
        setuid(Uid::from_raw(65_534))?;
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
            .map_err(|error| Stop::unavailable(format!("no user namespaces: {error}")))?;
        script.add_namespace();
        loopback_up()?;
        let socket = stream(local)?;
        socket.bind(&local.into())?;
        Ok(socket.listen(8)?)
    })?;
    for event in [Bind, Listen, Close] {
        alerts.of_process(child).expect(event);
    }
    Ok(())
}

pub(super) fn unprivileged(script: &mut Script) -> Result<(), Stop> {
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    let local = at("127.0.0.1")?;
    let alerts = script.socket(Transport::Tcp, local);
    let child = in_child(|| {
        setgid(Gid::from_raw(65_534))?;
        setuid(Uid::from_raw(65_534))?;
        let socket = stream(local)?;
        socket.bind(&local.into())?;
        Ok(socket.listen(8)?)
    })?;
    for event in [Bind, Listen, Close] {
        alerts.of_process(child).expect(event);
    }
    Ok(())
}
