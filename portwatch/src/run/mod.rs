//! The monitor: arms the sensor and turns its events and snapshots into lines until it is told to
//! stop.

mod armed;
mod surveyor;

use std::{os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, Interval, interval_at, sleep_until, timeout},
};

use self::{
    armed::{armed, limits},
    surveyor::Surveyor,
};
use crate::{
    alert::{Alert, Severity},
    cli,
    event::{Event, Transport},
    host::ThisHost,
    occupancy::Occupancies,
    output::{Format, FormatName, Stdout},
    policy::Policy,
    printable::Printable,
    registry::Registry,
    sensor::{self, Adoption, Health, Sensor},
    snapshot,
    survey::{Scope, Survey},
};

/// What the monitor is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The form of the alerts.
    pub format: FormatName,
    /// What alerts.
    pub policy: Policy,
    /// How to arm the sensor.
    pub sensor: sensor::Options,
    /// How often to look whether the sensor is whole.
    pub health_interval: Duration,
}

/// Reports that are taken from the ring before the agent looks at its signals again.
const BATCH: usize = 64;

/// How long after the last report the counter of lost ones is read once more.
const SETTLED: Duration = Duration::from_secs(1);

/// How long a stalled reader of stdout holds up the end.
const LAST_FLUSH: Duration = Duration::from_secs(2);

/// Watches until SIGINT or SIGTERM.
///
/// # Errors
///
/// [`sensor::SensorError`] when it cannot watch, [`StdoutGone`](crate::output::StdoutGone) when nobody reads.
pub fn run(options: &Options, registry: Registry) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    runtime.block_on(watch(options, registry))
}

async fn watch(options: &Options, registry: Registry) -> Result<()> {
    // Before arming, so that a signal during start does not leave the work half done.
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let stdout = Stdout::take()?;
    let watched = options.policy.watched(&registry, &Transport::ALL);
    let sensor = Sensor::arm(&options.sensor, watched)?;
    cli::say(&armed(options, &registry, &sensor));
    for limit in limits(options, &sensor) {
        cli::say(&limit);
    }

    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let surveyor = Surveyor::new(Scope {
        watched: options.policy.watched(&registry, &Transport::ALL).collect(),
        cgroup: options.sensor.cgroup.clone(),
    });
    let mut monitor = Monitor {
        sensor,
        occupancies: Occupancies::new(ThisHost::default(), registry, host_name()),
        surveyor,
        format: options.format.format(colour),
        stdout,
        events: Vec::with_capacity(BATCH),
        alerts: Vec::with_capacity(BATCH),
        health: interval_at(
            Instant::now() + options.health_interval,
            options.health_interval,
        ),
    };
    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        result = monitor.watch() => return result,
    }
    monitor.finish().await
}

struct Monitor {
    sensor: Sensor,
    occupancies: Occupancies<ThisHost>,
    surveyor: Surveyor,
    format: Box<dyn Format>,
    stdout: Stdout,
    events: Vec<Event>,
    alerts: Vec<Alert>,
    health: Interval,
}

impl Monitor {
    /// Prints alerts until stdout fails. May be cancelled: what it holds then, `finish` prints.
    async fn watch(&mut self) -> Result<()> {
        let mut settled: Option<Instant> = None;
        loop {
            let mut survey = None;
            let due = self.surveyor.next();
            tokio::select! {
                ready = self.sensor.readable() => {
                    ready.context("waiting for the ring buffer")?;
                    settled = Some(Instant::now() + SETTLED);
                }
                () = until(settled) => settled = None,
                _ = self.health.tick() => self.check_health(),
                taken = self.surveyor.taken() => survey = Some(taken),
                () = until(due) => {}
                gone = self.stdout.gone() => return Err(gone.into()),
            }
            while self.print_batch().await? {
                // Lets a signal in between batches of a burst.
                tokio::task::yield_now().await;
            }
            // The ring is empty: what happened before a snapshot was begun or taken is known.
            if let Some(survey) = survey {
                self.reconcile(survey);
                self.stdout.flush().await?;
            }
            if self.occupancies.wants_snapshot() {
                self.surveyor.ask(surveyor::Why::Holders);
            }
            if self.surveyor.is_due() {
                self.occupancies.begin_snapshot();
                self.surveyor.begin();
            }
        }
    }

    /// Prints what is in the ring, a batch at most, and what was lost. Whether there may be more.
    async fn print_batch(&mut self) -> Result<bool> {
        self.stdout.flush().await?;
        let taken = self.sensor.take(BATCH, &mut self.events);
        for event in self.events.drain(..) {
            self.occupancies.observe(event, &mut self.alerts);
            for alert in self.alerts.drain(..) {
                self.format.write(&alert, self.stdout.pending());
            }
            // Each line at once: the reader may act on it while the next one is made.
            self.stdout.flush_now()?;
        }
        let lost = self.sensor.newly_lost()?;
        if lost > 0 {
            self.format
                .write(&self.occupancies.lose(lost), self.stdout.pending());
            self.surveyor.ask(surveyor::Why::Loss);
        }
        self.stdout.flush().await?;
        Ok(taken == BATCH)
    }

    /// Queues the alerts for what a snapshot shows that events have not.
    fn reconcile(&mut self, survey: std::io::Result<Survey>) {
        let survey = match survey {
            Ok(survey) => survey,
            Err(error) => {
                self.warn(&format!(
                    "the sockets that are there could not be read: {error}"
                ));
                return;
            }
        };
        survey.teach(self.occupancies.host());
        let (sensor, occupancies) = (&mut self.sensor, &self.occupancies);
        let (findings, coverage) = survey.findings(|held, event| {
            if occupancies.knows(event, held.netns) {
                return Some(true);
            }
            let Some(socket) = snapshot::duplicate(held) else {
                // Gone, if it had holders and none has it any more.
                let mut holders = held.holders.iter();
                let is_there = held.holders.is_empty()
                    || holders.any(|holder| snapshot::is_held_by(held, *holder));
                return is_there.then_some(false);
            };
            let adoption = Adoption {
                cookie: held.cookie?,
                transport: held.transport,
                local: held.local,
            };
            Some(sensor.adopt(socket.as_fd(), &adoption))
        });
        if self
            .occupancies
            .reconcile(findings, &coverage, &mut self.alerts)
        {
            self.surveyor.ask(surveyor::Why::Loss);
        }
        for alert in self.alerts.drain(..) {
            self.format.write(&alert, self.stdout.pending());
        }
    }

    /// Looks whether the sensor is whole, and queues an alert for each change.
    fn check_health(&mut self) {
        for Health { regained, detail } in self.sensor.check() {
            let severity = if regained {
                Severity::Warning
            } else {
                Severity::Critical
            };
            let alert = self.occupancies.report_health(severity, &detail);
            self.format.write(&alert, self.stdout.pending());
        }
        let forgotten = self.occupancies.take_forgotten();
        if forgotten > 0 {
            self.warn(&format!(
                "too many sockets on watched ports: {forgotten} were forgotten, the oldest first"
            ));
        }
        if self.occupancies.has_unmarked() {
            self.surveyor.ask(surveyor::Why::Unmarked);
        }
    }

    /// Queues an alert about the monitor itself.
    fn warn(&mut self, detail: &str) {
        let alert = self.occupancies.report_health(Severity::Warning, detail);
        self.format.write(&alert, self.stdout.pending());
    }

    /// Detaches, and prints what was reported until then.
    async fn finish(mut self) -> Result<()> {
        self.sensor.disarm();
        self.occupancies.end_waiting(&mut self.alerts);
        for alert in self.alerts.drain(..) {
            self.format.write(&alert, self.stdout.pending());
        }
        let rest = async {
            while self.print_batch().await? {}
            anyhow::Ok(())
        };
        match timeout(LAST_FLUSH, rest).await {
            Ok(result) => result,
            Err(_) => Err(self.stdout.stalled().into()),
        }
    }
}

/// Sleeps until `deadline`, for ever without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// This host's name.
pub fn host_name() -> Printable {
    nix::unistd::gethostname().map_or_else(
        |_| Printable::from("unknown"),
        |name| Printable::from(name.as_os_str()),
    )
}
