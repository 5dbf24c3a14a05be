//! When snapshots are taken: at start, after a loss, to see who holds what was taken, and as long as
//! something is there whose close nobody reports. Each on a thread of its own, and seldom enough to
//! cost next to nothing.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::inventory::{Scan, Scope};

/// Why a snapshot is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Reports are missing.
    Loss,
    /// Sockets were taken: a while later those that are still there have their holders.
    Holders,
    /// Sockets are there whose close is not reported.
    Unmarked,
}

impl Why {
    const fn delay(self) -> Duration {
        match self {
            Self::Loss => Duration::ZERO,
            Self::Holders => Duration::from_millis(200),
            Self::Unmarked => Duration::from_secs(1),
        }
    }

    /// The rest between two, in times of what the last one took.
    const fn rest(self) -> u32 {
        match self {
            Self::Loss => 4,
            Self::Holders | Self::Unmarked => 50,
        }
    }
}

pub(super) struct ScanScheduler {
    scope: Arc<Scope>,
    running: Option<JoinHandle<io::Result<Scan>>>,
    due: Option<Instant>,
    began: Instant,
    ended: Instant,
}

impl ScanScheduler {
    /// The first one is due at once.
    pub(super) fn new(scope: Scope) -> Self {
        let now = Instant::now();
        Self {
            scope: Arc::new(scope),
            running: None,
            due: Some(now),
            began: now,
            ended: now,
        }
    }

    /// Other ports count from the next one on.
    pub(super) fn set_scope(&mut self, scope: Scope) {
        self.scope = Arc::new(scope);
    }

    /// Asks for one that begins after now.
    pub(super) fn ask(&mut self, why: Why) {
        let took = self.ended.duration_since(self.began);
        let rested = self.ended + took * why.rest();
        let due = rested.max(Instant::now() + why.delay());
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Whether one should begin now.
    pub(super) fn is_due(&self) -> bool {
        self.next().is_some_and(|due| due <= Instant::now())
    }

    /// When one should begin; None while one is being taken.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.filter(|_| self.running.is_none())
    }

    pub(super) fn begin(&mut self) {
        self.due = None;
        self.began = Instant::now();
        let scope = Arc::clone(&self.scope);
        // One thread: it must not be felt by what this host is there for.
        self.running = Some(spawn_blocking(move || Scan::take(&scope, 1)));
    }

    /// Waits for the one that is being taken.
    pub(super) async fn taken(&mut self) -> io::Result<Scan> {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let taken = running.await;
        self.running = None;
        self.ended = Instant::now();
        taken.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
