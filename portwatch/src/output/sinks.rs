//! Where alerts go: a list, each entry a kind of its own.

use super::{Format, Stdout, StdoutGone};
use crate::alert::Alert;

/// One place that alerts go to.
pub enum Sink {
    /// Lines on stdout.
    Stdout(Box<dyn Format>, Stdout),
    /// Alerts that are kept, for tests and for `list`.
    Memory(Vec<Alert>),
}

/// All of them.
pub struct Sinks(Vec<Sink>);

impl Sinks {
    /// These.
    #[must_use]
    pub const fn new(sinks: Vec<Sink>) -> Self {
        Self(sinks)
    }

    /// Queues the alert everywhere.
    pub fn write(&mut self, alert: &Alert) {
        for sink in &mut self.0 {
            match sink {
                Sink::Stdout(format, stdout) => format.write(alert, stdout.pending()),
                Sink::Memory(kept) => kept.push(alert.clone()),
            }
        }
    }

    /// Writes where enough is queued for a write of full size.
    ///
    /// # Errors
    ///
    /// [`StdoutGone`].
    pub fn flush_if_full(&mut self) -> Result<(), StdoutGone> {
        self.stdouts().try_for_each(Stdout::flush_if_full)
    }

    /// Writes everything that is queued. May be cancelled: what was not written stays queued.
    ///
    /// # Errors
    ///
    /// [`StdoutGone`].
    pub async fn flush(&mut self) -> Result<(), StdoutGone> {
        for stdout in self.stdouts() {
            stdout.flush().await?;
        }
        Ok(())
    }

    /// Waits until stdout's reader has gone away.
    pub async fn gone(&self) -> StdoutGone {
        for sink in &self.0 {
            if let Sink::Stdout(_, stdout) = sink {
                return stdout.gone().await;
            }
        }
        std::future::pending().await
    }

    /// The error for a reader that stalled.
    #[must_use]
    pub fn stalled(&mut self) -> StdoutGone {
        let queued = self.stdouts().map(|stdout| stdout.queued_lines());
        StdoutGone::Stalled {
            lines: queued.sum(),
        }
    }

    /// The alerts that were kept since the last call.
    pub fn take_kept(&mut self) -> Vec<Alert> {
        let mut all = Vec::new();
        for sink in &mut self.0 {
            if let Sink::Memory(kept) = sink {
                all.append(kept);
            }
        }
        all
    }

    fn stdouts(&mut self) -> impl Iterator<Item = &mut Stdout> {
        self.0.iter_mut().filter_map(|sink| match sink {
            Sink::Stdout(_, stdout) => Some(stdout),
            Sink::Memory(_) => None,
        })
    }
}
