//! netlink(7) requests.

#![forbid(unsafe_code)]

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// One netlink attribute, padded to four bytes (netlink(7)).
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends one request and returns the first message of the answer, without its header.
pub(super) fn request(
    protocol: SockProtocol,
    kind: u16,
    flags: i32,
    body: &[u8],
) -> io::Result<Vec<u8>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    let length = (16 + body.len()) as u32;
    let flags = (flags | libc::NLM_F_REQUEST) as u16;
    let mut message = Vec::new();
    // struct nlmsghdr: length, type, flags, sequence, port.
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend_from_slice(body);
    let to = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &message, &to, MsgFlags::empty())?;
    let mut answer = vec![0; 4096];
    let received = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(received);
    let short = || io::Error::other("a short answer from netlink");
    let kind: [u8; 2] = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(short)?;
    let payload = answer.get(16..).ok_or_else(short)?;
    if i32::from(u16::from_ne_bytes(kind)) == libc::NLMSG_ERROR {
        // struct nlmsgerr: a negative errno, or 0.
        let error = payload.get(..4).and_then(|bytes| bytes.try_into().ok());
        let error = i32::from_ne_bytes(error.ok_or_else(short)?);
        if error != 0 {
            return Err(io::Error::from_raw_os_error(-error));
        }
    }
    Ok(payload.to_vec())
}
