//! The eBPF object: what the host offers it, and loading it.

#[cfg(feature = "debug")]
pub(super) mod debug;
mod features;
mod load;
mod offsets;
mod probe;

pub use self::probe::{Check, PRIVILEGES, probe};
pub(super) use self::{
    features::{HostFeatures, check_privileges, check_ring_size},
    load::{load, load_program, load_programs},
};

/// The eBPF object, aligned as its loader wants it.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portwatch-ebpf"));
