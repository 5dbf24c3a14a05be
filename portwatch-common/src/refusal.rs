//! Which binds the kernel side refuses. There are two banks of it, so that the agent can change all
//! at once: it writes the one that is not in use, and then says that it is.

use bytemuck::{Pod, Zeroable};

use crate::{PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_UDPLITE, SYSTEM_PORTS};

/// How many refusals a bank holds: one for each bit of a `u64`.
pub const REFUSALS: u32 = 64;

/// How many banks there are.
pub const BANKS: u32 = 2;

/// Slots of the map that says which refusals a port has.
pub const REFUSAL_SLOTS: u32 = BANKS * TRANSPORTS * SYSTEM_PORTS;

/// The transports whose bind can be refused.
const TRANSPORTS: u32 = 3;

/// Bits of [`Refusal::flags`].
pub mod refusal_flags {
    /// Only for the user `uid`.
    pub const UID: u32 = 1;
    /// Only within the cgroup `cgroup_id`, which is `level` deep.
    pub const CGROUP: u32 = 1 << 1;
    /// Refuse; without it, let be and look no further.
    pub const DENY: u32 = 1 << 2;
}

/// What one rule says of a bind on its ports. The first that applies decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Refusal {
    /// Id of a cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// How far that cgroup is below the root.
    pub level: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Bits of [`refusal_flags`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// The slot of (port, protocol) in bank 1 or 2; None for a protocol whose bind cannot be refused.
#[inline(always)]
#[must_use]
pub const fn refusal_slot(bank: u32, protocol: u8, port: u32) -> Option<u32> {
    let transport = match protocol {
        PROTOCOL_TCP => 0,
        PROTOCOL_UDP => 1,
        PROTOCOL_UDPLITE => 2,
        _ => return None,
    };
    Some(((bank - 1) * TRANSPORTS + transport) * SYSTEM_PORTS + port)
}
