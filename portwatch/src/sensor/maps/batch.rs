//! Reading a hash map in batches, since Linux 5.6: aya has one system call for each key.

use std::{
    ffi::c_long,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::{HashMap, IterableMap as _, MapData};
use bytemuck::Pod;

use super::Plain;

/// A hash map of the BPF programs' own types.
pub(in crate::sensor) type PlainMap<K, V> = HashMap<MapData, Plain<K>, Plain<V>>;

/// Room for the entries that one system call reads.
pub(in crate::sensor) struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Pod, V: Pod> Batch<K, V> {
    pub(in crate::sensor) fn new(room: usize) -> Self {
        Self {
            keys: vec![K::zeroed(); room],
            values: vec![V::zeroed(); room],
        }
    }

    /// Reads the entries of whole buckets from `bucket` on, as many as fit; the first without one. Returns
    /// how many there were, and at which bucket to go on. There is more room afterwards where one
    /// bucket has more than fits, `limit` at most.
    pub(in crate::sensor) fn read(
        &mut self,
        map: &PlainMap<K, V>,
        bucket: Option<u32>,
        limit: usize,
    ) -> io::Result<(usize, Option<u32>)> {
        let mut next = 0_u32;
        loop {
            let room = self.keys.len().min(self.values.len());
            let mut attr = BatchAttr {
                in_batch: bucket
                    .as_ref()
                    .map_or(0, |bucket| std::ptr::from_ref(bucket) as u64),
                out_batch: &raw mut next as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: room as u32,
                map_fd: map.map().fd().as_fd().as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the kernel reads a u32 from `in_batch`, writes one to `out_batch`, and `count`
            // elements of the map's key and value size at most to `keys` and `values`, which have room
            // for them: aya has compared these sizes when it made the `HashMap`, and `Plain` has the size
            // of what is in it. All outlive the call. Any bytes are a `Pod`.
            let result = unsafe { bpf(LOOKUP_BATCH, &mut attr) };
            // Also where it fails the kernel writes how many there were, if it wrote any.
            match result {
                Ok(()) => return Ok((attr.count as usize, Some(next))),
                Err(error) => match error.raw_os_error() {
                    // The end.
                    Some(libc::ENOENT) => return Ok((attr.count as usize, None)),
                    // One bucket has more than fits.
                    Some(libc::ENOSPC) if room < limit => {
                        self.keys.resize(room * 2, K::zeroed());
                        self.values.resize(room * 2, V::zeroed());
                    }
                    Some(libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// The first entries of those that were read.
    pub(in crate::sensor) fn entries(&self, count: usize) -> impl Iterator<Item = (&K, &V)> {
        self.keys.iter().zip(&self.values).take(count)
    }
}

/// `BPF_MAP_LOOKUP_BATCH` of bpf(2) (include/uapi/linux/bpf.h).
const LOOKUP_BATCH: c_long = 24;

/// The part of `union bpf_attr` for batches.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// bpf(2).
///
/// # Safety
///
/// `attr` is the part of `union bpf_attr` that `command` reads, and its pointers are what the command
/// asks for.
unsafe fn bpf<T>(command: c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: the caller's promise; the kernel takes what lies beyond the size for zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
