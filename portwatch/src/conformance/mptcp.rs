//! Multipath TCP: a listener, and a connection of one path or of two.

#![forbid(unsafe_code)]

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::SockProtocol;
use socket2::{Socket, Type};

use super::{
    netlink::{self, attribute},
    plain::{MPTCP, at, listener, local_address, open},
    script::{ExpectedSession, ExpectedSocket, Script, Stop},
};
use crate::model::{Direction, EventKind::Close};

/// How long a second path may take that an idle machine makes at once.
const TIMEOUT: Duration = Duration::from_secs(10);

fn mptcp_listener(script: &mut Script, client: Option<i32>) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let socket = open(local, Type::STREAM, Some(MPTCP))?;
    let alerts = listener(script, &socket, local)?;
    let client = open(local, Type::STREAM, client)?;
    client.connect(&local.into())?;
    alerts.expect_accept(local.ip(), local_address(&client)?);
    drop(socket.accept()?);
    drop(client);
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

pub(super) fn plain(script: &mut Script) -> Result<(), Stop> {
    mptcp_listener(script, Some(MPTCP))
}

pub(super) fn fallback(script: &mut Script) -> Result<(), Stop> {
    mptcp_listener(script, None)
}

/// Names and numbers of the generic netlink families `nlctrl` (include/uapi/linux/genetlink.h) and
/// `mptcp_pm` (include/uapi/linux/mptcp.h, Linux 5.10).
mod pm {
    pub(super) const CONTROLLER: u16 = 16;
    pub(super) const GET_FAMILY: u8 = 3;
    pub(super) const FAMILY_ID: u16 = 1;
    pub(super) const FAMILY_NAME: u16 = 2;
    pub(super) const ADD_ADDRESS: u8 = 1;
    pub(super) const SET_LIMITS: u8 = 5;
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const MAX_ANNOUNCED: u16 = 2;
    pub(super) const MAX_SUBFLOWS: u16 = 3;
    pub(super) const FAMILY: u16 = 1;
    pub(super) const IPV4: u16 = 3;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const FLAG_SUBFLOW: u32 = 1 << 1;
    /// `NLA_F_NESTED` in include/uapi/linux/netlink.h.
    pub(super) const NESTED: u16 = 1 << 15;
}

/// Sends one generic netlink request: struct genlmsghdr and attributes.
fn request(family: u16, command: u8, flags: i32, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let body = [&[command, 1, 0, 0], attributes].concat();
    netlink::request(SockProtocol::NetlinkGeneric, family, flags, &body)
}

/// The number of the family `mptcp_pm`.
fn path_manager() -> io::Result<u16> {
    let name = attribute(pm::FAMILY_NAME, b"mptcp_pm\0");
    let answer = request(pm::CONTROLLER, pm::GET_FAMILY, 0, &name)?;
    let mut rest = answer.get(4..).unwrap_or(&[]);
    while let [low, high, kind_low, kind_high, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([low, high])).max(4);
        if u16::from_ne_bytes([kind_low, kind_high]) == pm::FAMILY_ID
            && let Some([low, high]) = rest.get(4..6)
        {
            return Ok(u16::from_ne_bytes([*low, *high]));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Err(io::Error::other("the answer has no number"))
}

/// Lets connections of this network namespace have a second path, from `address`.
fn add_path(address: Ipv4Addr) -> io::Result<()> {
    let family = path_manager()?;
    let limits = [pm::MAX_ANNOUNCED, pm::MAX_SUBFLOWS]
        .map(|limit| attribute(limit, &2_u32.to_ne_bytes()))
        .concat();
    request(family, pm::SET_LIMITS, libc::NLM_F_ACK, &limits)?;
    let endpoint = [
        attribute(pm::FAMILY, &(libc::AF_INET as u16).to_ne_bytes()),
        attribute(pm::IPV4, &address.octets()),
        attribute(pm::FLAGS, &pm::FLAG_SUBFLOW.to_ne_bytes()),
    ]
    .concat();
    let endpoint = attribute(pm::ADDRESS | pm::NESTED, &endpoint);
    request(family, pm::ADD_ADDRESS, libc::NLM_F_ACK, &endpoint).map(drop)
}

/// How many paths have joined a connection of this network namespace (`MPJoinAckRx` in
/// net/mptcp/mib.c).
fn joined() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("MPTcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return Ok(0);
    };
    let mut counters = names.split(' ').zip(values.split(' '));
    let joined = counters.find(|(name, _)| *name == "MPJoinAckRx");
    Ok(joined
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0))
}

/// An MPTCP connection of two paths to the listener, over which a byte has gone each way. Returns its ends:
/// the client's and the server's.
fn of_two_paths(
    listener: &Socket,
    alerts: ExpectedSocket,
    local: SocketAddr,
) -> Result<(Socket, Socket), Stop> {
    let client = open(local, Type::STREAM, Some(MPTCP))?;
    client.connect(&local.into())?;
    alerts.expect_accept(local.ip(), local_address(&client)?);
    let (accepted, _) = listener.accept()?;
    // A path can join once both ends have received data.
    let mut byte = [std::mem::MaybeUninit::uninit()];
    client.send(b"x")?;
    accepted.recv(&mut byte)?;
    accepted.send(b"x")?;
    client.recv(&mut byte)?;
    let until = Instant::now() + TIMEOUT;
    while joined()? == 0 {
        if Instant::now() > until {
            return Err(Stop::Failed("no second path has joined".into()));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok((client, accepted))
}

fn listener_for_two_paths(
    script: &mut Script,
    local: SocketAddr,
) -> Result<(Socket, ExpectedSocket), Stop> {
    let socket = open(local, Type::STREAM, Some(MPTCP))?;
    add_path(Ipv4Addr::new(127, 0, 0, 2))
        .map_err(|error| Stop::unavailable(format!("cannot add a path: {error}")))?;
    let alerts = listener(script, &socket, local)?;
    Ok((socket, alerts))
}

/// A second path from another address joins the connection: it is no second accept.
pub(super) fn joined_path(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let (socket, alerts) = listener_for_two_paths(script, local)?;
    drop(of_two_paths(&socket, alerts, local)?);
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

/// Two paths are one session.
pub(super) fn session_of_two_paths(script: &mut Script) -> Result<(), Stop> {
    script.compare_sessions();
    let local = at("127.0.0.1")?;
    let (socket, alerts) = listener_for_two_paths(script, local)?;
    let (client, accepted) = of_two_paths(&socket, alerts, local)?;
    let peer = local_address(&client)?;
    drop((client, accepted));
    let session = ExpectedSession {
        direction: Direction::In,
        bytes_in: 1,
        bytes_out: 1,
        // Which end closes a path first is the kernel's choice.
        ended_by: None,
    };
    alerts.expect_session(peer, session);
    script.wait()?;
    drop(socket);
    alerts.expect(Close);
    Ok(())
}
