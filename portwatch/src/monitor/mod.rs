//! The monitor says *when*: it arms the sensor, and gives what the ring and scans bring to the
//! pipeline until it is stopped by a signal.
#![cfg_attr(not(target_env = "gnu"), forbid(unsafe_code))]

mod cgroups;
mod ring;
mod rules;
mod scan;
mod scheduler;
mod start;

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, Interval, interval_at, sleep_until, timeout},
};

use self::{
    cgroups::CgroupWatch,
    ring::BATCH,
    rules::scope,
    scheduler::{ScanScheduler, Urgency},
    start::{armed, limits},
};
use crate::{
    config::{Config, Source},
    decide::Decider,
    inventory::Scan,
    model::{Event, Printable, Severity, Transport},
    output::{FormatName, Sink, Sinks, Stdout},
    pipeline::{Input, Pipeline},
    registry::Registry,
    sensor::{self, Health, Sensor},
    tracker::ThisHost,
    util::console,
};

/// How to run the monitor.
#[derive(Clone, Debug)]
pub struct Options {
    /// The format of the alerts.
    pub format: FormatName,
    /// Where the configuration comes from, at start and on SIGHUP.
    pub source: Source,
    /// How to arm the sensor.
    pub sensor: sensor::Options,
    /// How often to check whether the sensor is whole.
    pub health_interval: Duration,
}

/// How long a reader of stdout that takes nothing delays the end.
const LAST_FLUSH: Duration = Duration::from_secs(2);

/// Watches until SIGINT or SIGTERM.
///
/// # Errors
///
/// [`sensor::SensorError`] when it cannot watch, [`StdoutGone`](crate::output::StdoutGone) when
/// stdout is closed or full.
pub fn run(options: &Options, registry: Registry) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    runtime.block_on(watch(options, registry))
}

async fn watch(options: &Options, registry: Registry) -> Result<()> {
    let config = options.source.load()?;
    // Before arming, so that a signal meanwhile does not leave it half done.
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let stdout = Stdout::take()?;
    let mut hangup = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    let watched = config.watched(&registry, &Transport::ALL);
    let mut sensor = Sensor::arm(&options.sensor, watched, &config.deny_rules(&registry))?;
    sensor.count_repeats(config.aggregate.enabled);
    console::log(&armed(&config, &registry, &sensor));
    for message in config.warnings.iter().chain(&limits(options, &sensor)) {
        console::log(message);
    }

    // Loading took many times what running takes.
    release_memory();
    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let sinks = Sinks::new(vec![Sink::Stdout(options.format.format(colour), stdout)]);
    let scope = scope(&config, &registry, options);
    let decider = Decider::new(registry, config.policy.clone(), config.dry_run);
    let settings = config.aggregate;
    let cgroups = CgroupWatch::start(sensor.deny_rules().clone())?;
    let mut monitor = Monitor {
        sensor,
        config,
        pipeline: Pipeline::new(ThisHost::default(), host_name(), decider, settings, sinks),
        scheduler: ScanScheduler::new(scope),
        events: Vec::with_capacity(BATCH),
        scan: None,
        is_first_scan: true,
        has_more: false,
        losses_due: None,
        counts_due: None,
        cgroups,
        health: interval_at(
            Instant::now() + options.health_interval,
            options.health_interval,
        ),
    };
    loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => {}
            result = monitor.watch() => return result,
        }
        monitor.reload(options);
    }
    monitor.finish().await
}

struct Monitor {
    sensor: Sensor,
    config: Config,
    pipeline: Pipeline<ThisHost>,
    scheduler: ScanScheduler,
    events: Vec<Event>,
    /// A scan that is complete and not joined yet.
    scan: Option<std::io::Result<Scan>>,
    /// Whether none was joined yet.
    is_first_scan: bool,
    /// Whether the ring holds more than was taken in one turn.
    has_more: bool,
    /// When to look for lost reports once more.
    losses_due: Option<Instant>,
    /// When to take what the BPF programs counted.
    counts_due: Option<Instant>,
    /// Follows the cgroups of deny rules.
    cgroups: CgroupWatch,
    health: Interval,
}

impl Monitor {
    /// Prints alerts until stdout fails. May be cancelled: what it holds then, `finish` prints.
    async fn watch(&mut self) -> Result<()> {
        loop {
            let due = self.scheduler.next();
            let flush_due = self.pipeline.due().map(Instant::from_std);
            let (losses_due, counts_due) = (self.losses_due, self.counts_due);
            tokio::select! {
                () = std::future::ready(()), if self.has_more => {}
                ready = self.sensor.readable() => ready.context("waiting for the ring buffer")?,
                () = until(losses_due) => {
                    self.losses_due = None;
                    self.report_losses()?;
                }
                () = until(counts_due) => self.take_counts()?,
                _ = self.health.tick() => self.check_health(),
                complete = self.scheduler.complete() => self.scan = Some(complete),
                () = until(due), if !self.has_more => {}
                () = until(flush_due) => {}
                gone = self.pipeline.sinks().gone() => return Err(gone.into()),
            }
            self.has_more = self.take_batches().await?;
            // The ring is empty: what happened before a scan began or ended is known.
            if !self.has_more
                && let Some(scan) = self.scan.take()
            {
                self.join(scan);
            }
            self.pipeline.flush(now());
            self.pipeline.sinks_mut().flush().await?;
            if self.pipeline.tracker().waits_for_scan() {
                self.scheduler.request(Urgency::Loss);
            } else if self.pipeline.tracker().wants_scan() {
                self.scheduler.request(Urgency::Holders);
            }
            if !self.has_more && self.scan.is_none() && self.scheduler.is_due() {
                self.pipeline.begin_scan();
                self.scheduler.begin();
            }
        }
    }

    /// Checks whether the sensor is whole, and reports each change.
    fn check_health(&mut self) {
        for Health { regained, detail } in self.sensor.check() {
            let severity = if regained {
                Severity::Warning
            } else {
                Severity::Critical
            };
            self.report_health(severity, detail);
        }
        if let Err(error) = self.sensor.deny_rules().find_cgroups() {
            self.warn(error.to_string());
        }
        let evicted = self.pipeline.tracker().take_evicted();
        if evicted > 0 {
            self.warn(format!(
                "too many sockets on watched ports: the oldest {evicted} are no longer tracked"
            ));
        }
        if self.pipeline.tracker().has_unmarked() {
            self.scheduler.request(Urgency::Unmarked);
        }
    }

    /// Reports a problem of the monitor itself.
    fn warn(&mut self, detail: String) {
        self.report_health(Severity::Warning, detail);
    }

    fn report_health(&mut self, severity: Severity, detail: String) {
        self.pipeline.push(Input::Health(severity, detail), now());
    }

    /// Detaches, and prints what was reported until then.
    async fn finish(mut self) -> Result<()> {
        self.sensor.disarm();
        self.pipeline.push(Input::ScanFailed, now());
        while timeout(LAST_FLUSH, self.take_batch())
            .await
            .map_err(|_| self.pipeline.sinks_mut().stalled())??
        {}
        self.report_losses()?;
        self.take_counts()?;
        self.pipeline.finish(now());
        timeout(LAST_FLUSH, self.pipeline.sinks_mut().flush())
            .await
            .map_err(|_| self.pipeline.sinks_mut().stalled())??;
        Ok(())
    }
}

/// The present, for the pipeline's deadlines.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Returns to the kernel what the allocator keeps for later.
fn release_memory() {
    // SAFETY: malloc_trim(3) may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
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
