//! When scans are taken: at start, after a loss, to see who holds a new socket, and as long as there
//! are sockets whose close is not reported. Each on a thread of its own, and seldom enough to cost
//! next to nothing.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::inventory::{Scan, Scope};

/// Why a scan is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Reports are missing.
    Loss,
    /// Two scans must agree, or the BPF programs count: what lasts is in both.
    Recheck,
    /// There are new sockets: those that are still open a while later have their holders.
    Holders,
    /// There are sockets whose close is not reported.
    Unmarked,
}

impl Urgency {
    const fn delay(self) -> Duration {
        match self {
            Self::Loss => Duration::ZERO,
            Self::Recheck => Duration::from_millis(120),
            Self::Holders => Duration::from_millis(200),
            Self::Unmarked => Duration::from_secs(1),
        }
    }

    /// The pause between two scans, in multiples of what the last one took.
    const fn pause(self) -> u32 {
        match self {
            Self::Loss | Self::Recheck => 4,
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
    /// The first scan is due at once.
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

    /// What the next scan is to show.
    pub(super) const fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// Other ports count from the next scan on.
    pub(super) fn set_scope(&mut self, scope: Scope) {
        self.scope = Arc::new(scope);
    }

    /// Requests a scan that begins after now.
    pub(super) fn request(&mut self, urgency: Urgency) {
        let took = self.ended.duration_since(self.began);
        let rested = self.ended + took * urgency.pause();
        let due = rested.max(Instant::now() + urgency.delay());
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Whether one should begin now.
    pub(super) fn is_due(&self) -> bool {
        self.next().is_some_and(|due| due <= Instant::now())
    }

    /// When one should begin; None while one is running.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.filter(|_| self.running.is_none())
    }

    pub(super) fn begin(&mut self) {
        self.due = None;
        self.began = Instant::now();
        let scope = Arc::clone(&self.scope);
        // One thread: the host's own work must not feel it.
        self.running = Some(spawn_blocking(move || Scan::take(scope, 1)));
    }

    /// Waits for the one that is running.
    pub(super) async fn complete(&mut self) -> io::Result<Scan> {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let complete = running.await;
        self.running = None;
        self.ended = Instant::now();
        complete.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
