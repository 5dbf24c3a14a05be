//! TCP binds that wait for what the socket turns out to be.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use crate::{decide::Decided, model::SocketKey};

/// Binds that wait for what comes next; past that the oldest is reported.
const LIMIT: usize = 1024;

#[derive(Default)]
pub(super) struct DelayedBinds {
    binds: HashMap<SocketKey, Decided>,
    /// In which order, and until when. The bind of one can be gone.
    deadlines: VecDeque<(Instant, SocketKey)>,
}

impl DelayedBinds {
    /// Adds a bind; the oldest one when there is no room for it any more.
    pub(super) fn add(
        &mut self,
        key: SocketKey,
        bind: Decided,
        deadline: Instant,
    ) -> Option<Decided> {
        self.binds.insert(key, bind);
        self.deadlines.push_back((deadline, key));
        (self.binds.len() > LIMIT)
            .then(|| self.take_oldest())
            .flatten()
    }

    /// Takes out the bind of a socket, if it waits.
    pub(super) fn remove(&mut self, key: SocketKey) -> Option<Decided> {
        self.binds.remove(&key)
    }

    /// When the first deadline is over.
    pub(super) fn due(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Takes out a bind that has waited long enough.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Decided> {
        while let Some((_, key)) = self
            .deadlines
            .pop_front_if(|(deadline, _)| *deadline <= now)
        {
            if let Some(bind) = self.binds.remove(&key) {
                return Some(bind);
            }
        }
        None
    }

    /// Takes out the bind that has waited longest.
    pub(super) fn take_oldest(&mut self) -> Option<Decided> {
        while let Some((_, key)) = self.deadlines.pop_front() {
            if let Some(bind) = self.binds.remove(&key) {
                return Some(bind);
            }
        }
        None
    }
}
