//! What sockets on watched ports carry: the kernel side marks those that it sees taken, this those
//! that were there before it.

use std::{net::SocketAddr, os::fd::BorrowedFd};

use aya::{
    Ebpf,
    maps::{MapData, SkStorage},
};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, Occupant, names};

use super::{
    SensorError,
    load::{Plain, map},
};
use crate::model::Transport;

/// A socket to mark.
#[derive(Clone, Copy, Debug)]
pub struct ExistingSocket {
    /// Its cookie.
    pub cookie: u64,
    /// Its transport.
    pub transport: Transport,
    /// What it has taken.
    pub local: SocketAddr,
}

/// The map of the marks.
pub(super) struct Occupants(SkStorage<MapData, Plain<Occupant>>);

/// `BPF_NOEXIST`: what the kernel side has marked meanwhile stays.
const IF_ABSENT: u64 = 1;

impl Occupants {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        let found = ebpf.take_map(names::OCCUPANTS);
        map(found, names::OCCUPANTS, SkStorage::try_from).map(Self)
    }

    pub(super) fn mark_existing(
        &mut self,
        socket: BorrowedFd<'_>,
        adoption: &ExistingSocket,
    ) -> bool {
        let (family, address) = match adoption.local {
            SocketAddr::V4(local) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&local.ip().octets());
                (FAMILY_IPV4, bytes)
            }
            SocketAddr::V6(local) => (FAMILY_IPV6, local.ip().octets()),
        };
        let mark = Plain(Occupant {
            cookie: adoption.cookie,
            address: bytemuck::cast(address),
            port: adoption.local.port(),
            family,
            protocol: adoption.transport.protocol(),
            closed: 0,
            untold: 0,
            tgid: 0,
            reserved: 0,
        });
        self.0.insert(&socket, mark, IF_ABSENT).is_ok() || self.0.get(&socket, 0).is_ok()
    }
}
