//! When scans are taken: at start, after a loss, to see who holds a new socket, and as long as there
//! are sockets whose close is not reported. Each on a thread of its own. Together they take a fiftieth
//! of one processor in the long run: those for holders read few processes while there is no time for
//! all, and those for everything else read the descriptors of processes only for new sockets.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::inventory::{Reach, Scan, Scope, Targets};

/// Why a scan is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// There are new sockets: those that are still open a while later have their holders.
    Holders,
    /// There are sockets whose close is not reported.
    Unmarked,
    /// Two scans must agree, or the BPF programs count: what lasts is in both.
    Recheck,
    /// Reports are missing.
    Loss,
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
            Self::Holders | Self::Unmarked => SHARE,
        }
    }
}

/// After so long without a scan one begins, whether or not anything asks for it: what was missed for
/// whatever reason, and is still there, is found then.
const ROUTINE: Duration = Duration::from_secs(60);

/// These scans take at most one part of so many of one processor, so that an idle monitor costs next to
/// nothing on a host where a scan takes long.
const ROUTINE_SHARE: u32 = 2000;

/// The part of one processor that scans take in the long run is one in so many.
const SHARE: u32 = 50;

/// The processor time that scans can take at once after a time without.
const SAVINGS: Duration = Duration::from_secs(1);

/// The processor time that scans may take.
struct Budget {
    /// When there were [`SAVINGS`] without any scan since, or will be.
    full: Instant,
}

impl Budget {
    fn spend(&mut self, cost: Duration, now: Instant) {
        self.full = self.full.max(now) + cost * SHARE;
    }

    /// When there is time for another scan.
    fn allows(&self) -> Instant {
        self.full
            .checked_sub(SAVINGS * SHARE)
            .unwrap_or_else(Instant::now)
    }
}

pub(super) struct ScanScheduler {
    scope: Arc<Scope>,
    running: Option<JoinHandle<io::Result<Scan>>>,
    due: Option<Instant>,
    /// The most urgent reason for the next scan.
    urgency: Urgency,
    ended: Instant,
    /// The processor time of the last scan.
    cost: Duration,
    budget: Budget,
    /// When a scan may read the descriptors of all processes.
    next_of_all: Instant,
    /// Whether the one that is running does.
    is_of_all: bool,
}

impl ScanScheduler {
    /// The first scan is due at once.
    pub(super) fn new(scope: Scope) -> Self {
        let now = Instant::now();
        Self {
            scope: Arc::new(scope),
            running: None,
            due: Some(now),
            urgency: Urgency::Loss,
            ended: now,
            cost: Duration::ZERO,
            budget: Budget { full: now },
            next_of_all: now,
            is_of_all: false,
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
        let rested = self.ended + self.cost * urgency.pause();
        let due = rested.max(Instant::now() + urgency.delay());
        self.urgency = match self.due {
            Some(_) => self.urgency.max(urgency),
            None => urgency,
        };
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Whether one should begin now.
    pub(super) fn is_due(&self) -> bool {
        self.next().is_some_and(|due| due <= Instant::now())
    }

    /// When one should begin; None while one is running.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.running.is_some() {
            return None;
        }
        let routine = self.ended + ROUTINE.max(self.cost * ROUTINE_SHARE);
        let due = self.due.map_or(routine, |due| due.min(routine));
        Some(due.max(self.budget.allows()))
    }

    /// Begins one, as far as `targets` are needed. `accepted`: as [`Scope::accepted`].
    pub(super) fn begin(&mut self, mut targets: Targets, accepted: HashSet<u64>) {
        // A routine one looks for sockets; who else has a known one open is for those that ask.
        let is_requested = self.due.take().is_some();
        self.is_of_all = is_requested && self.next_of_all <= Instant::now();
        let left_out = std::mem::take(&mut targets.left_out);
        let reach = match self.urgency {
            _ if !is_requested => Reach::Changes(targets),
            _ if self.is_of_all => Reach::All,
            Urgency::Holders if targets.places.is_some() && accepted.is_empty() => {
                Reach::Holders(targets)
            }
            _ => Reach::Changes(targets),
        };
        let mut scope = Arc::clone(&self.scope);
        if !accepted.is_empty() {
            Arc::make_mut(&mut scope).accepted = accepted;
        }
        if !left_out.is_empty() {
            Arc::make_mut(&mut scope).left_out = left_out;
        }
        // One thread: the host's own work must not feel it.
        self.running = Some(spawn_blocking(move || Scan::take(scope, reach, 1)));
    }

    /// Waits for the one that is running.
    pub(super) async fn complete(&mut self) -> io::Result<Scan> {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let complete = running.await;
        self.running = None;
        self.ended = Instant::now();
        let complete = complete.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.cost = complete.as_ref().map_or(self.cost, Scan::cost);
        self.spend(self.cost);
        if self.is_of_all {
            // Half of the time is for the others.
            self.next_of_all = self.ended + self.cost * SHARE * 2;
        }
        complete
    }

    /// Notes that scans have taken that much processor time.
    pub(super) fn spend(&mut self, cost: Duration) {
        self.budget.spend(cost, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_begins_each_minute_and_sooner_on_request() {
        let mut scheduler = ScanScheduler::new(Scope::default());
        assert!(scheduler.is_due());
        // As if it had ended at once.
        scheduler.due = None;
        assert_eq!(scheduler.next(), Some(scheduler.ended + ROUTINE));
        assert!(!scheduler.is_due());
        scheduler.request(Urgency::Loss);
        assert!(scheduler.is_due());
        scheduler.due = None;
        scheduler.ended -= ROUTINE;
        assert!(scheduler.is_due());
        scheduler.cost = ROUTINE / ROUTINE_SHARE * 2;
        assert!(!scheduler.is_due());
        scheduler.cost = Duration::ZERO;
        // Within the budget, whatever asks for it.
        scheduler.spend(SAVINGS * 3);
        assert!(!scheduler.is_due());
    }

    #[test]
    fn scans_take_their_share_of_the_time_whatever_is_requested() {
        let start = Instant::now();
        for cost in [1, 20, 300, 5000].map(Duration::from_millis) {
            let mut budget = Budget { full: start };
            let (mut now, mut spent) = (start, Duration::ZERO);
            for _ in 0..1000 {
                now = now.max(budget.allows());
                budget.spend(cost, now);
                spent += cost;
                now += cost;
            }
            // What was saved before, and the scan that goes beyond it.
            let most = now.duration_since(start) / SHARE + SAVINGS + 2 * cost;
            assert!(spent <= most, "{cost:?}: {spent:?} > {most:?}");
        }
        // A first loss need not wait, nor one after a while.
        let mut budget = Budget { full: start };
        assert!(budget.allows() <= start);
        budget.spend(SAVINGS, start);
        budget.spend(Duration::from_millis(20), start);
        assert_eq!(budget.allows(), start + Duration::from_secs(1));
    }
}
