//! Which binds the BPF programs deny. There are two banks of rules, so that the agent can replace
//! all at once: it writes the bank that is not in use, and then switches to it.

use bytemuck::{Pod, Zeroable};

use crate::{PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_UDPLITE, SYSTEM_PORTS};

/// Rules in a bank: one for each bit of a `u64`.
pub const MAX_DENY_RULES: u32 = 64;

/// Number of banks.
pub const DENY_BANKS: u32 = 2;

/// Slots of the map from [`deny_slot`] to the rules that apply to a port.
pub const DENY_SLOTS: u32 = DENY_BANKS * TRANSPORTS * SYSTEM_PORTS;

/// The transports whose bind can be denied.
const TRANSPORTS: u32 = 3;

/// Bytes of [`DenyRule::name`]. The BPF programs cut a longer one one byte short of them, so a name in a
/// rule is two bytes short of them at most.
pub const CGROUP_NAME_BYTES: usize = 64;

/// Bits of [`DenyRule::flags`].
pub mod deny_flags {
    /// Only for the user `uid`.
    pub const UID: u32 = 1;
    /// Only within the cgroup that `cgroup_id` or `parent_id` and `name` stand for, `level` deep.
    pub const CGROUP: u32 = 1 << 1;
    /// Deny the bind; without it, allow it and evaluate no further rule.
    pub const DENY: u32 = 1 << 2;
}

/// The verdict of one rule about a bind on its ports. The first that applies decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DenyRule {
    /// Id of a cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// Id of the cgroup above; 0 where `name` does not count.
    pub parent_id: u64,
    /// The cgroup's name, padded with NULs: one that was created a moment ago has it already.
    pub name: [u64; CGROUP_NAME_BYTES / 8],
    /// How far that cgroup is below the root.
    pub level: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Bits of [`deny_flags`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// The slot of (port, protocol) in bank 1 or 2; None for a protocol whose bind cannot be denied.
#[inline(always)]
#[must_use]
pub const fn deny_slot(bank: u32, protocol: u8, port: u32) -> Option<u32> {
    let transport = match protocol {
        PROTOCOL_TCP => 0,
        PROTOCOL_UDP => 1,
        PROTOCOL_UDPLITE => 2,
        _ => return None,
    };
    Some(((bank - 1) * TRANSPORTS + transport) * SYSTEM_PORTS + port)
}
