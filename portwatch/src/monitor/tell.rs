//! From the ring to stdout.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::{Monitor, scheduler::Why};
use crate::model::Severity;

/// Reports that are taken from the ring before the agent looks at its signals again.
pub(super) const BATCH: usize = 64;

/// How long after the last report the counter of lost ones is read once more.
const SETTLED: Duration = Duration::from_secs(1);

/// How often what the kernel side counts is taken, while it counts.
const REPEATS: Duration = Duration::from_secs(1);

/// Batches in a row, after which the agent looks what else there is to do.
const BATCHES: usize = 64;

impl Monitor {
    /// Prints what is in the ring. Whether there is more than goes into one turn.
    pub(super) async fn print_batches(&mut self) -> Result<bool> {
        for _ in 0..BATCHES {
            if !self.print_batch().await? {
                return Ok(false);
            }
            // Lets a signal in between batches of a burst.
            tokio::task::yield_now().await;
        }
        Ok(true)
    }

    /// Prints what is in the ring, a batch at most, and what was lost. Whether there may be more.
    pub(super) async fn print_batch(&mut self) -> Result<bool> {
        self.stdout.flush().await?;
        let taken = self.sensor.take(BATCH, &mut self.events);
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            self.tracker.observe(event, &mut self.alerts);
            self.write();
            // A line that comes alone is out at once; of many, several go in one write.
            self.stdout.flush_if_full()?;
        }
        self.events = events;
        if taken > 0 {
            self.settled = Some(Instant::now() + SETTLED);
            self.tell_lost()?;
            self.stdout.flush().await?;
        }
        Ok(taken == BATCH)
    }

    /// Queues an alert for the reports that found the ring full since the last look.
    pub(super) fn tell_lost(&mut self) -> Result<()> {
        let lost = self.sensor.newly_lost()?;
        if lost > 0 {
            self.told.push(self.tracker.lose(lost));
            self.write();
            self.scheduler.ask(Why::Loss);
        }
        if self.sensor.is_counting() && self.repeats.is_none() {
            self.repeats = Some(Instant::now() + REPEATS);
        }
        Ok(())
    }

    /// Queues what the kernel side counted for the sums that it belongs to.
    pub(super) fn tell_repeats(&mut self) -> Result<()> {
        self.repeats = None;
        let mut repeats = Vec::new();
        self.sensor.take_repeats(&mut repeats)?;
        let now = Instant::now().into_std();
        for (event, times) in repeats {
            self.tracker.repeat(&event, &mut self.alerts);
            for alert in self.alerts.drain(..) {
                self.collapse.repeat(alert, times, now);
            }
        }
        if self.sensor.is_counting() {
            self.repeats = Some(Instant::now() + REPEATS);
        } else {
            // What of it is still there is found.
            self.scheduler.ask(Why::Loss);
        }
        Ok(())
    }

    /// Puts what is to be told, after what the collapse lets through, into the output.
    pub(super) fn write(&mut self) {
        let now = Instant::now().into_std();
        for alert in self.alerts.drain(..) {
            self.collapse.pass(alert, now, &mut self.told);
        }
        for alert in self.told.drain(..) {
            self.format.write(&alert, self.stdout.pending());
        }
    }

    /// Queues an alert about the monitor itself.
    pub(super) fn warn(&mut self, detail: &str) {
        self.report_health(Severity::Warning, detail);
    }

    /// Queues an alert about a part of the monitor.
    pub(super) fn report_health(&mut self, severity: Severity, detail: &str) {
        let alert = self.tracker.report_health(severity, detail);
        self.told.push(alert);
    }
}
