//! The traced work.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
};

use anyhow::Result;

use super::super::work::again;

/// The traced work, always on an unassigned port.
pub(super) enum Work {
    /// socket, bind, close
    Bind,
    /// connect, accept, close both
    Accept(TcpListener),
}

pub(super) const PORT: u16 = 976;

const HERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);

impl Work {
    pub(super) fn accept() -> Result<Self> {
        Ok(Self::Accept(TcpListener::bind(HERE)?))
    }

    /// Opens its sockets; the server's comes first and is closed first, so that no client port is left in
    /// TIME_WAIT.
    pub(super) fn open(&self) -> std::io::Result<[Option<OwnedFd>; 2]> {
        match self {
            Self::Bind => Ok([Some(again(|| UdpSocket::bind(HERE))?.into()), None]),
            Self::Accept(listener) => {
                let client = TcpStream::connect(HERE)?;
                let (server, _) = listener.accept()?;
                Ok([Some(server.into()), Some(client.into())])
            }
        }
    }
}
