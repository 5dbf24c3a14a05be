//! From the ring to the pipeline.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::{Monitor, now, scheduler::Urgency};
use crate::{
    pipeline::Input,
    sensor::{MAX_COUNTED_SOCKETS, News, Pass},
};

/// Reports that are taken from the ring before the agent looks at its signals again.
pub(super) const BATCH: usize = 64;

/// How long after the last report the counter of lost ones is read once more.
const LOSSES_DELAY: Duration = Duration::from_secs(1);

/// How often the kernel's counters are taken, while it counts.
const COUNTS_INTERVAL: Duration = Duration::from_secs(1);

/// How often the table of counted sockets is read, while it has entries.
const COUNTED_INTERVAL: Duration = Duration::from_millis(100);

/// Batches in a row, after which the agent looks what else there is to do.
const BATCHES: usize = 64;

impl Monitor {
    /// Prints what is in the ring. Returns whether there is more than goes into one turn.
    pub(super) async fn take_batches(&mut self) -> Result<bool> {
        for _ in 0..BATCHES {
            if !self.take_batch().await? {
                return Ok(false);
            }
            // Lets a signal in between batches of a burst.
            tokio::task::yield_now().await;
        }
        Ok(true)
    }

    /// Prints what is in the ring, a batch at most, and what was lost. Returns whether there may be
    /// more.
    pub(super) async fn take_batch(&mut self) -> Result<bool> {
        self.pipeline.sinks_mut().flush().await?;
        let taken = self.sensor.take(BATCH, &mut self.events);
        let mut events = std::mem::take(&mut self.events);
        self.canary.consume(&mut events);
        for event in events.drain(..) {
            self.pipeline.push(Input::Event(event), now());
            // A line that comes alone is out at once; of many, several go in one write.
            self.pipeline.sinks_mut().flush_if_full()?;
        }
        self.events = events;
        if taken > 0 {
            self.losses_due = Some(Instant::now() + LOSSES_DELAY);
            self.report_losses()?;
            self.pipeline.sinks_mut().flush().await?;
        }
        Ok(taken == BATCH)
    }

    /// Reports how many reports found the ring full since the last call, and looks what else the BPF
    /// programs did.
    pub(super) fn report_losses(&mut self) -> Result<()> {
        let News {
            lost,
            kept,
            overflowed,
        } = self.sensor.news()?;
        if lost > 0 {
            self.canary.excuse();
            self.pipeline.push(Input::Loss(lost), now());
            self.scheduler.request(Urgency::Loss);
            self.is_inexact |= self.sensor.is_counting();
        }
        if kept > 0 && self.counted_due.is_none() {
            self.counted_due = Some(Instant::now() + COUNTED_INTERVAL);
        }
        if overflowed > 0 {
            self.is_inexact = true;
            if !std::mem::replace(&mut self.has_overflowed, true) {
                self.warn(format!(
                    "more than {MAX_COUNTED_SOCKETS} new sockets while events are counted: \
                     scans find those that last"
                ));
            }
            // Two scans find what lasts although its bind was counted.
            self.scheduler.request(Urgency::Recheck);
        }
        if self.sensor.is_counting() {
            self.canary.excuse();
        }
        if self.sensor.is_counting() && self.counts_due.is_none() {
            self.counts_due = Some(Instant::now() + COUNTS_INTERVAL);
        }
        Ok(())
    }

    /// Takes what the BPF programs counted.
    pub(super) fn take_counts(&mut self) -> Result<()> {
        self.counts_due = None;
        let mut counted = Vec::new();
        self.sensor.take_repeats(&mut counted)?;
        for (event, times) in counted {
            if self.canary.is_own(&event) {
                continue;
            }
            self.pipeline.push(Input::Counted(event, times), now());
        }
        if self.sensor.is_counting() {
            self.counts_due = Some(Instant::now() + COUNTS_INTERVAL);
            if self.is_inexact {
                self.scheduler.request(Urgency::Recheck);
            }
        } else {
            let is_inexact = std::mem::replace(&mut self.is_inexact, false);
            self.has_overflowed = false;
            // A scan finds what of it is still open.
            if std::mem::replace(&mut self.has_skipped, false) || is_inexact {
                self.scheduler.request(Urgency::Loss);
            }
        }
        Ok(())
    }

    /// Goes on reading the table of counted sockets, and reports those that last.
    pub(super) fn take_counted_sockets(&mut self) -> Result<Pass> {
        let mut events = Vec::new();
        let pass = self.sensor.take_counted_sockets(&mut events)?;
        self.canary.consume(&mut events);
        for event in events {
            self.pipeline.push(Input::Event(event), now());
            self.pipeline.sinks_mut().flush_if_full()?;
        }
        self.counted_due = match pass {
            Pass::Unfinished => Some(Instant::now()),
            Pass::Complete { has_young: true } => Some(Instant::now() + COUNTED_INTERVAL),
            Pass::Complete { has_young: false } => {
                // A program can have counted what it has removed since the counters were read.
                self.losses_due = Some(Instant::now() + LOSSES_DELAY);
                None
            }
        };
        Ok(pass)
    }

    /// Reads all of the table of counted sockets, and reports those that last.
    pub(super) fn take_all_counted_sockets(&mut self) -> Result<()> {
        while self.take_counted_sockets()? == Pass::Unfinished {}
        Ok(())
    }
}
