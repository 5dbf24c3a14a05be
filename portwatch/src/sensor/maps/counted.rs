//! The table of counted sockets: what the BPF programs neither reported nor counted yet. What lasts is
//! taken out of it; see portwatch-ebpf/src/counted.rs.

use std::{
    collections::VecDeque,
    ffi::c_long,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use bytemuck::Zeroable as _;
use portwatch_common::{CountedKey, MAX_COUNTED_SOCKETS, Report, names, protocol::has_lasted};

use super::map;
use crate::{linux::clock::monotonic_ns, sensor::SensorError};

/// Entries that are read with one system call: 35 KB.
const BATCH: usize = 256;

/// System calls of one turn: each reads [`BATCH`] entries, or all buckets that hold none.
const READS: usize = 4;

/// Entries that are taken out in one turn.
const TAKEN: usize = 64;

/// The table, and how far it is read.
pub(in crate::sensor) struct CountedSockets {
    map: MapData,
    keys: Vec<CountedKey>,
    reports: Vec<Report>,
    /// The bucket at which the next read begins; None for the first.
    bucket: Option<u32>,
    /// Whether all was read in this pass, and `due` is to be taken out.
    is_read: bool,
    /// What is to be taken out, the oldest first: a listen after its bind.
    due: VecDeque<(CountedKey, Report)>,
    /// Whether entries were left in this pass because they are too young.
    has_young: bool,
}

/// How far a pass through the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// There is more to read or to take.
    Unfinished,
    /// Complete. Whether there are entries that were too young.
    Complete {
        /// As above.
        has_young: bool,
    },
}

impl CountedSockets {
    pub(in crate::sensor) fn new(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        let found = ebpf.take_map(names::COUNTED_SOCKETS);
        let map = map(found, names::COUNTED_SOCKETS, |map| match map {
            Map::HashMap(data) => Ok(data),
            _ => Err(io::Error::other("is no hash")),
        })?;
        Ok(Self {
            map,
            keys: vec![CountedKey::zeroed(); BATCH],
            reports: vec![Report::zeroed(); BATCH],
            bucket: None,
            is_read: false,
            due: VecDeque::new(),
            has_young: false,
        })
    }

    /// Goes on with the pass through the table: takes out what lasts, or everything. Each event that
    /// is taken out is to be reported before anything else is read from the ring.
    pub(in crate::sensor) fn take(
        &mut self,
        everything: bool,
        taken: &mut Vec<Report>,
    ) -> Result<Pass, SensorError> {
        let failed =
            |error: io::Error| SensorError::kernel("reading the table of counted sockets", &error);
        // Reading first and then taking, so that a listen is not taken before its bind.
        if !self.is_read {
            for _ in 0..READS {
                if !self.read(everything).map_err(failed)? {
                    self.is_read = true;
                    break;
                }
            }
            if !self.is_read {
                return Ok(Pass::Unfinished);
            }
            let by_time = |entry: &(CountedKey, Report)| entry.1.time_ns;
            self.due.make_contiguous().sort_unstable_by_key(by_time);
        }
        let now = self.due.len().min(TAKEN);
        for (key, report) in self.due.drain(..now) {
            // Otherwise its socket has closed, and reports or counts it itself.
            if delete(&self.map, &key).map_err(failed)? {
                taken.push(report);
            }
        }
        if !self.due.is_empty() {
            return Ok(Pass::Unfinished);
        }
        self.due = VecDeque::new();
        self.is_read = false;
        let has_young = std::mem::replace(&mut self.has_young, false);
        Ok(Pass::Complete { has_young })
    }

    /// Calls `each` for every entry.
    pub(in crate::sensor) fn for_each(
        &self,
        mut each: impl FnMut(&CountedKey, &Report),
    ) -> io::Result<()> {
        let (mut keys, mut reports) = (self.keys.clone(), self.reports.clone());
        let mut bucket = None;
        loop {
            let (read, next) = lookup_batch(&self.map, bucket, &mut keys, &mut reports)?;
            for (key, report) in keys.iter().zip(&reports).take(read) {
                each(key, report);
            }
            if next.is_none() {
                return Ok(());
            }
            bucket = next;
        }
    }

    /// Reads one batch. Returns whether there is more.
    fn read(&mut self, everything: bool) -> io::Result<bool> {
        let (keys, reports) = (&mut self.keys, &mut self.reports);
        let (read, next) = lookup_batch(&self.map, self.bucket, keys, reports)?;
        self.bucket = next;
        let now = monotonic_ns();
        for (key, report) in self.keys.iter().zip(&self.reports).take(read) {
            // A program is about to write the event: no time yet.
            let is_due = report.time_ns != 0 && (everything || has_lasted(report.time_ns, now));
            if !is_due {
                self.has_young = true;
            } else if self.due.len() < MAX_COUNTED_SOCKETS as usize {
                self.due.push_back((*key, *report));
            }
        }
        Ok(next.is_some())
    }
}

/// `BPF_MAP_DELETE_ELEM` and `BPF_MAP_LOOKUP_BATCH` of bpf(2), the latter since Linux 5.6
/// (include/uapi/linux/bpf.h).
const DELETE_ELEM: c_long = 3;
const LOOKUP_BATCH: c_long = 24;

/// The part of `union bpf_attr` for one element.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

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

/// Removes an entry. Returns whether it was there.
fn delete(map: &MapData, key: &CountedKey) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: fd(map),
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the key has the map's key size and outlives the call, which writes nothing.
    match unsafe { bpf(DELETE_ELEM, &mut attr) } {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads the entries of whole buckets from `bucket` on, as many as fit. Returns how many there were,
/// and at which bucket to go on.
fn lookup_batch(
    map: &MapData,
    bucket: Option<u32>,
    keys: &mut Vec<CountedKey>,
    reports: &mut Vec<Report>,
) -> io::Result<(usize, Option<u32>)> {
    let mut next = 0_u32;
    loop {
        let room = keys.len().min(reports.len());
        let mut attr = BatchAttr {
            in_batch: bucket
                .as_ref()
                .map_or(0, |bucket| std::ptr::from_ref(bucket) as u64),
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: reports.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: fd(map),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads a u32 from `in_batch`, writes one to `out_batch`, and `count`
        // elements of the map's key and value size at most to `keys` and `values`, which have room for
        // them; all outlive the call. Any bytes are a `CountedKey` or a `Report`.
        let result = unsafe { bpf(LOOKUP_BATCH, &mut attr) };
        // Also where it fails the kernel writes how many there were, if it wrote any.
        match result {
            Ok(()) => return Ok((attr.count as usize, Some(next))),
            Err(error) => match error.raw_os_error() {
                // The end.
                Some(libc::ENOENT) => return Ok((attr.count as usize, None)),
                // One bucket has more than fits.
                Some(libc::ENOSPC) if room < MAX_COUNTED_SOCKETS as usize => {
                    keys.resize(room * 2, CountedKey::zeroed());
                    reports.resize(room * 2, Report::zeroed());
                }
                Some(libc::EINTR) => {}
                _ => return Err(error),
            },
        }
    }
}

fn fd(map: &MapData) -> u32 {
    map.fd().as_fd().as_raw_fd() as u32
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
