//! Connections to the port that are delivered to a listener on another one: the accept has the port
//! that was connected to, and the process that serves it.

#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Command, Stdio},
};

use super::{
    bpf::{self, instruction},
    handover::in_child,
    plain::{at, listener as listener_on, stream},
    script::{ExpectedSocket, PORT, Script, Stop},
};
use crate::model::{
    EventKind::{Bind, Close},
    Transport,
};

const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_FUNC_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_FUNC_SK_RELEASE: u32 = 86;
const BPF_FUNC_SK_ASSIGN: u32 = 124;

/// Offset of `local_port` in `struct bpf_sk_lookup` (include/uapi/linux/bpf.h, Linux 5.9), in bytes.
const LOCAL_PORT: u64 = 60;

/// Loads a program that delivers what comes for the port to the socket in `map`.
fn load(map: &OwnedFd) -> io::Result<OwnedFd> {
    let program = [
        // r6 = r1; r2 = ctx->local_port; if r2 != PORT goto end
        instruction(0xbf, 0x16, 0, 0),
        instruction(0x61, 0x12, LOCAL_PORT, 0),
        instruction(0x55, 0x02, 14, PORT.into()),
        // *(u32 *)(r10 - 4) = 0; r0 = bpf_map_lookup_elem(map, r10 - 4); if r0 == 0 goto end
        instruction(0x62, 0x0a, 0xfffc, 0),
        instruction(0xbf, 0xa2, 0, 0),
        instruction(0x07, 0x02, 0, -4_i32 as u32),
        instruction(0x18, 0x11, 0, map.as_raw_fd() as u32),
        instruction(0, 0, 0, 0),
        instruction(0x85, 0, 0, BPF_FUNC_MAP_LOOKUP_ELEM),
        instruction(0x15, 0x00, 7, 0),
        // r7 = r0; bpf_sk_assign(ctx, r7, 0); bpf_sk_release(r7)
        instruction(0xbf, 0x07, 0, 0),
        instruction(0xbf, 0x61, 0, 0),
        instruction(0xbf, 0x72, 0, 0),
        instruction(0xb7, 0x03, 0, 0),
        instruction(0x85, 0, 0, BPF_FUNC_SK_ASSIGN),
        instruction(0xbf, 0x71, 0, 0),
        instruction(0x85, 0, 0, BPF_FUNC_SK_RELEASE),
        // end: return SK_PASS
        instruction(0xb7, 0x00, 0, 1),
        instruction(0x95, 0, 0, 0),
    ];
    bpf::load(BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, &program)
}

/// Delivers what comes for the port in this network namespace to `listener`, as long as the link
/// lives.
fn steer(listener: &TcpListener) -> Result<OwnedFd, Stop> {
    bpf::lift_memory_limit();
    let map = bpf::socket_map(listener)
        .map_err(|error| Stop::unavailable(format!("cannot make a map of sockets: {error}")))?;
    let program = load(&map)
        .map_err(|error| Stop::unavailable(format!("cannot load an sk_lookup program: {error}")))?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    Ok(bpf::link(&program, &namespace, BPF_SK_LOOKUP)?)
}

/// What nft(8) is to do so that TPROXY delivers what comes for the port to 127.0.0.1 and `port`.
fn rules(port: u16) -> String {
    format!(
        "table inet portwatch {{\n\
         chain steer {{\n\
         type filter hook prerouting priority mangle\n\
         ip protocol tcp tcp dport {PORT} tproxy ip to 127.0.0.1:{port}\n\
         }}\n}}\n"
    )
}

/// A TPROXY rule of nftables.
pub(super) fn by_tproxy(script: &mut Script) -> Result<(), Stop> {
    let socket = stream(at("127.0.0.1")?)?;
    socket.set_ip_transparent_v4(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(8)?;
    let listener = TcpListener::from(socket);
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|_| Stop::MissingProgram("nft"))?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(rules(listener.local_addr()?.port()).as_bytes())?;
    }
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let error = error.lines().next().unwrap_or_default().to_owned();
        return Err(Stop::unavailable(format!("no TPROXY rule: {error}")));
    }
    let local = at("127.0.0.1")?;
    let _ends = connect(script.socket(Transport::Tcp, local), &listener, local)?;
    script.wait()
}

/// Connects to the port and accepts the connection elsewhere; returns both ends.
fn connect(
    alerts: ExpectedSocket,
    listener: &TcpListener,
    to: SocketAddr,
) -> Result<(TcpStream, TcpStream), Stop> {
    let client = TcpStream::connect(to)?;
    let (accepted, _) = listener.accept()?;
    alerts
        .without_cookie()
        .expect_accept(to.ip(), client.local_addr()?);
    Ok((client, accepted))
}

/// No socket is on the port.
pub(super) fn by_sk_lookup(script: &mut Script) -> Result<(), Stop> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let link = steer(&listener)?;
    let local = at("127.0.0.1")?;
    let alerts = script.socket(Transport::Tcp, local);
    let _first = connect(alerts, &listener, local)?;
    script.wait()?;
    // Its process is known by now.
    let _second = connect(alerts, &listener, local)?;
    script.wait()?;
    drop(link);
    Ok(())
}

/// Another process listens on the port: the accept is not its.
pub(super) fn beside_a_listener(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let other = stream(local)?;
    let alerts = listener_on(script, &other, local)?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let link = steer(&listener)?;
    in_child(|| {
        let _ends = connect(script.socket(Transport::Tcp, local), &listener, local)?;
        script.wait()
    })?;
    drop(link);
    drop(other);
    alerts.expect(Close);
    Ok(())
}

/// A socket is on the port that does not listen: the accept is not its.
pub(super) fn beside_a_bound_socket(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let bound = stream(local)?;
    bound.bind(&local.into())?;
    let alerts = script.socket(Transport::Tcp, local);
    alerts.expect(Bind);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let link = steer(&listener)?;
    let _ends = connect(script.socket(Transport::Tcp, local), &listener, local)?;
    script.wait()?;
    drop(link);
    drop(bound);
    alerts.expect(Close);
    Ok(())
}
