//! The marks of sockets on watched ports: the BPF programs mark those that they see bound, this those
//! that were there before.
#![forbid(unsafe_code)]

use std::{net::SocketAddr, os::fd::BorrowedFd, rc::Rc, sync::atomic::Ordering::Relaxed};

use aya::{
    Ebpf,
    maps::{MapData, SkStorage},
};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, SocketMark, names};

use super::{Plain, map};
use crate::{
    model::Transport,
    sensor::{SensorError, ring::Shared},
};

/// A socket to mark.
#[derive(Clone, Copy, Debug)]
pub struct ExistingSocket {
    /// Its cookie.
    pub cookie: u64,
    /// Its transport.
    pub transport: Transport,
    /// Its local address and port.
    pub local: SocketAddr,
}

/// The map of the marks.
pub(in crate::sensor) struct SocketMarks {
    map: SkStorage<MapData, Plain<SocketMark>>,
    control: Rc<Shared>,
    /// Sockets that this has marked.
    marked: u64,
}

/// `BPF_NOEXIST`: a mark that the BPF programs have made meanwhile stays.
const IF_ABSENT: u64 = 1;

impl SocketMarks {
    pub(in crate::sensor) fn new(
        ebpf: &mut Ebpf,
        control: Rc<Shared>,
    ) -> Result<Self, SensorError> {
        let found = ebpf.take_map(names::SOCKET_MARKS);
        let map = map(found, names::SOCKET_MARKS, SkStorage::try_from)?;
        Ok(Self {
            map,
            control,
            marked: 0,
        })
    }

    /// What this has added to the number of marked sockets.
    pub(in crate::sensor) const fn marked(&self) -> u64 {
        self.marked
    }

    pub(in crate::sensor) fn mark_existing(
        &mut self,
        socket: BorrowedFd<'_>,
        existing: &ExistingSocket,
    ) -> bool {
        let (family, address) = match existing.local {
            SocketAddr::V4(local) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&local.ip().octets());
                (FAMILY_IPV4, bytes)
            }
            SocketAddr::V6(local) => (FAMILY_IPV6, local.ip().octets()),
        };
        let mark = Plain(SocketMark::new(
            existing.cookie,
            bytemuck::cast(address),
            existing.local.port(),
            family,
            existing.transport.protocol(),
        ));
        // Before the mark is there, so that the count is never too low: the socket can be closed at
        // once. Where a mark was there, whoever made it has counted it.
        let marked_sockets = self.control.marked_sockets();
        marked_sockets.fetch_add(1, Relaxed);
        if self.map.insert(&socket, mark, IF_ABSENT).is_ok() {
            self.marked += 1;
            return true;
        }
        marked_sockets.fetch_sub(1, Relaxed);
        self.map.get(&socket, 0).is_ok()
    }
}
