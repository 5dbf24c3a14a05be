//! Which ports are watched.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use portwatch_common::{SYSTEM_PORTS, watch_bit};

/// Which (port, protocol) is watched: `watch_bit`s by port.
#[btf_map]
static WATCHED: Array<u32, { SYSTEM_PORTS as usize }> = Array::new();

#[inline(always)]
pub fn is_watched(port: u32, protocol: u8) -> bool {
    // Spares nearly every socket on the host the map lookup.
    if port >= SYSTEM_PORTS {
        return false;
    }
    match WATCHED.get(port) {
        Some(bits) => bits & watch_bit(protocol) != 0,
        None => false,
    }
}
