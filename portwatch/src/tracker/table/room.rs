//! Room in the table: which sockets are no longer tracked, and which records are slimmed.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use super::{OPEN, Table};
use crate::{
    model::SocketKey,
    tracker::{Stage, TrackedSocket},
};

/// Bytes of the whole records of open sockets' processes. Past that the oldest are slimmed.
const MAX_RECORDS: usize = 512 << 10;

/// Sockets that are evicted at once: choosing them takes a look at all.
const EVICTED: usize = OPEN / 16;

impl Table {
    /// Adds the record of the socket's process to what is kept, unless it is that of the last one.
    pub(super) fn note_record(&mut self, socket: &TrackedSocket) {
        let process = socket.process.as_ref().filter(|process| !process.is_slim);
        if let Some(process) = process
            && self.last_record.replace(Rc::as_ptr(process)) != Some(Rc::as_ptr(process))
        {
            self.record_bytes += process.bytes();
        }
    }

    /// Slims the records of the oldest sockets, as far as there are too many bytes of them: what was
    /// left out is read again when it is needed.
    pub(in crate::tracker) fn limit_records(&mut self) {
        let mut whole = HashSet::new();
        let mut bytes = 0;
        let mut order = Vec::new();
        let records = self
            .open
            .values()
            .filter_map(|socket| socket.process.as_ref());
        for process in records.filter(|process| !process.is_slim) {
            if whole.insert(Rc::as_ptr(process)) {
                bytes += process.bytes();
                order.push((Rc::as_ptr(process), process.bytes()));
            }
        }
        if bytes > MAX_RECORDS {
            let mut slim = HashMap::new();
            for (record, its) in order {
                if bytes <= MAX_RECORDS / 2 {
                    break;
                }
                bytes -= its;
                slim.insert(record, None);
            }
            let records = self
                .open
                .values_mut()
                .filter_map(|socket| socket.process.as_mut());
            for process in records {
                if let Some(slim) = slim.get_mut(&Rc::as_ptr(process)) {
                    let slim = slim.get_or_insert_with(|| Rc::new(process.slim()));
                    *process = Rc::clone(slim);
                }
            }
        }
        self.record_bytes = bytes;
        self.last_record = None;
    }

    /// Evicts the newest sockets of those who have most, listeners last: of each user, unit and
    /// container as many stay as of the others.
    pub(super) fn make_room(&mut self) {
        let mut ranks: HashMap<Option<*const _>, usize> = HashMap::new();
        let mut all: HashMap<Option<_>, Vec<(usize, SocketKey)>> = HashMap::new();
        for is_listening in [true, false] {
            let sockets = self.open.iter();
            let sockets =
                sockets.filter(|(_, socket)| (socket.stage == Stage::Listening) == is_listening);
            for (key, socket) in sockets {
                let rank = ranks
                    .entry(socket.crowd.as_ref().map(Rc::as_ptr))
                    .or_default();
                *rank += 1;
                let payer = socket.process.as_deref().map(|process| {
                    let verified = &process.verified;
                    let container = verified.container.as_ref().map(|one| &*one.id);
                    let unit = verified.unit.as_ref().map(|unit| &*unit.name);
                    (process.uid, container.or(unit))
                });
                all.entry(payer).or_default().push((*rank, *key));
            }
        }
        let mut places = Vec::with_capacity(self.open.len());
        for mut sockets in all.into_values() {
            sockets.sort_unstable();
            let keys = sockets.into_iter().enumerate();
            places.extend(keys.map(|(place, (_, key))| (place, key)));
        }
        places.sort_unstable();
        for (_, key) in places.split_off(places.len().saturating_sub(EVICTED)) {
            if let Some(socket) = self.remove(key) {
                self.evicted += u64::from(!self.crowds.count(key, &socket));
            }
        }
    }

    /// As [`limit_records`](Self::limit_records), if there may be too many.
    pub(super) fn limit_new_records(&mut self) {
        if self.record_bytes > MAX_RECORDS {
            self.limit_records();
        }
    }
}
