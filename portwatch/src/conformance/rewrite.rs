//! Another cgroup program moves a bind to another port: the alert has the port that was bound.

#![forbid(unsafe_code)]

use std::{fs, io, os::fd::OwnedFd, path::PathBuf};

use super::{
    bpf::{self, instruction},
    handover::in_child,
    plain::{at, stream},
    script::{PORT, Script, Stop},
};
use crate::model::{
    EventKind::{Bind, Close, Listen},
    Transport,
};

const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_BIND: u32 = 8;

/// Offset of `user_port` in `struct bpf_sock_addr`, in bytes.
const USER_PORT: u64 = 24;

/// Loads `ctx->user_port = htons(port); return 1`.
fn load(port: u16) -> io::Result<OwnedFd> {
    let program = [
        // r2 = htons(port); *(u32 *)(r1 + user_port) = r2; r0 = 1; exit
        instruction(0xb7, 0x02, 0, u32::from(port.to_be())),
        instruction(0x63, 0x21, USER_PORT, 0),
        instruction(0xb7, 0x00, 0, 1),
        instruction(0x95, 0, 0, 0),
    ];
    bpf::load(
        BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        BPF_CGROUP_INET4_BIND,
        &program,
    )
}

/// A cgroup that is removed when dropped.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

pub(super) fn rewritten_bind(script: &mut Script) -> Result<(), Stop> {
    let root = crate::linux::cgroup::root()
        .ok_or_else(|| Stop::unavailable("no cgroup v2 hierarchy is mounted"))?;
    bpf::lift_memory_limit();
    let cgroup = Cgroup(root.join(format!("portwatch-scenario-{}", std::process::id())));
    fs::create_dir(&cgroup.0)
        .map_err(|error| Stop::unavailable(format!("cannot create a cgroup: {error}")))?;
    let directory = fs::File::open(&cgroup.0)?;
    let program = load(PORT)
        .map_err(|error| Stop::unavailable(format!("cannot load a bind program: {error}")))?;
    let link = bpf::link(&program, &directory, BPF_CGROUP_INET4_BIND)?;
    let alerts = script.socket(Transport::Tcp, at("127.0.0.1")?);
    let members = cgroup.0.join("cgroup.procs");
    let child = in_child(|| {
        fs::write(&members, std::process::id().to_string())?;
        let mut requested = at("127.0.0.1")?;
        requested.set_port(8080);
        let socket = stream(requested)?;
        socket.bind(&requested.into())?;
        Ok(socket.listen(8)?)
    })?;
    for event in [Bind, Listen, Close] {
        alerts.of_process(child).expect(event);
    }
    drop(link);
    Ok(())
}
