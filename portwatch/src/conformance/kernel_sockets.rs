//! Kernel sockets.

#![forbid(unsafe_code)]

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::{
    plain::at,
    script::{PORT, Script, Stop},
};
use crate::model::{
    EventKind::{Bind, Close},
    Transport,
};

/// Attributes from include/uapi/linux/if_link.h.
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_PORT: u16 = 15;

const NAME: &[u8] = b"portwatch0\0";

/// A VXLAN device binds its port when it is brought up. Its close is reported by a scan: kernel
/// sockets do not run the `sock_release` hook (`inet_release` in net/ipv4/af_inet.c).
pub(super) fn vxlan(script: &mut Script) -> Result<(), Stop> {
    let data = [
        attribute(IFLA_VXLAN_ID, &7_u32.to_ne_bytes()),
        attribute(IFLA_VXLAN_PORT, &PORT.to_be_bytes()),
    ]
    .concat();
    let info = [
        attribute(IFLA_INFO_KIND, b"vxlan\0"),
        attribute(IFLA_INFO_DATA, &data),
    ]
    .concat();
    let link = [
        attribute(libc::IFLA_IFNAME, NAME),
        attribute(libc::IFLA_LINKINFO, &info),
    ]
    .concat();
    let alerts = script
        .socket(Transport::Udp, at("0.0.0.0")?)
        .without_process();
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match request(libc::RTM_NEWLINK, create, libc::IFF_UP as u32, &link) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Err(Stop::unavailable("this kernel has no VXLAN"));
        }
        result => result?,
    }
    alerts.expect(Bind);
    request(libc::RTM_DELLINK, 0, 0, &attribute(libc::IFLA_IFNAME, NAME))?;
    alerts.expect(Close);
    script.wait()
}

/// One netlink attribute, padded to four bytes (netlink(7)).
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends one rtnetlink(7) request about a link and waits for the kernel's acknowledgement.
/// Attributes and headers are in host byte order, except the VXLAN port.
fn request(kind: u16, flags: i32, link_flags: u32, attributes: &[u8]) -> io::Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let length = (16 + 16 + attributes.len()) as u32;
    let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::new();
    // struct nlmsghdr: length, type, flags, sequence, port.
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family, type, index, flags, changed flags.
    message.extend([0; 8]);
    message.extend(link_flags.to_ne_bytes());
    message.extend(link_flags.to_ne_bytes());
    message.extend_from_slice(attributes);
    sendto(
        netlink.as_raw_fd(),
        &message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 4096];
    let received = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsgerr behind the header: a negative errno, or 0.
    let error = answer
        .get(16..20)
        .filter(|_| received >= 20)
        .and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("a short answer from netlink")),
    }
}
