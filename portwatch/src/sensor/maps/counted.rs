//! The table of counted sockets: what the BPF programs neither reported nor counted yet. What lasts is
//! taken out of it; see portwatch-ebpf/src/counted.rs.
#![forbid(unsafe_code)]

use std::{collections::VecDeque, io};

use aya::{
    Ebpf,
    maps::{HashMap, MapError},
};
use portwatch_common::{CountedKey, MAX_COUNTED_SOCKETS, Report, names, protocol::has_lasted};

use super::{
    Plain,
    batch::{Batch, PlainMap},
    map,
};
use crate::{linux::clock::monotonic_ns, sensor::SensorError};

/// Entries that are read with one system call: 35 KB.
const BATCH: usize = 256;

/// System calls of one turn: each reads [`BATCH`] entries, or all buckets that hold none.
const READS: usize = 4;

/// Entries that are taken out in one turn.
const TAKEN: usize = 64;

/// The table, and how far it is read.
pub(in crate::sensor) struct CountedSockets {
    map: PlainMap<CountedKey, Report>,
    batch: Batch<CountedKey, Report>,
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
        Ok(Self {
            map: map(found, names::COUNTED_SOCKETS, HashMap::try_from)?,
            batch: Batch::new(BATCH),
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
            if delete(&mut self.map, key).map_err(failed)? {
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
        let mut batch = Batch::new(BATCH);
        let mut bucket = None;
        loop {
            let (read, next) = batch.read(&self.map, bucket, MAX_COUNTED_SOCKETS as usize)?;
            for (key, report) in batch.entries(read) {
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
        let limit = MAX_COUNTED_SOCKETS as usize;
        let (read, next) = self.batch.read(&self.map, self.bucket, limit)?;
        self.bucket = next;
        let now = monotonic_ns();
        for (key, report) in self.batch.entries(read) {
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

/// Removes an entry. Returns whether it was there.
fn delete(map: &mut PlainMap<CountedKey, Report>, key: CountedKey) -> io::Result<bool> {
    match map.remove(&Plain(key)) {
        Ok(()) => Ok(true),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(false)
        }
        Err(error) => Err(io::Error::other(error)),
    }
}
