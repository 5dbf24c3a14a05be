//! Kernel sockets.

#![forbid(unsafe_code)]

use std::io;

use nix::sys::socket::SockProtocol;

use super::{
    netlink::{self, attribute},
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

/// Sends one rtnetlink(7) request about a link. Attributes and headers are in host byte order, except
/// the VXLAN port.
fn request(kind: u16, flags: i32, link_flags: u32, attributes: &[u8]) -> io::Result<()> {
    let mut message = Vec::new();
    // struct ifinfomsg: family, type, index, flags, changed flags.
    message.extend([0; 8]);
    message.extend(link_flags.to_ne_bytes());
    message.extend(link_flags.to_ne_bytes());
    message.extend_from_slice(attributes);
    let flags = flags | libc::NLM_F_ACK;
    netlink::request(SockProtocol::NetlinkRoute, kind, flags, &message).map(drop)
}
