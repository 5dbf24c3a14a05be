//! The monitor: arms the sensor and turns its events and snapshots into lines until it is told to
//! stop.

mod armed;
mod rules;
mod scheduler;
mod tell;

use std::{os::fd::AsFd as _, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, Interval, interval_at, sleep_until, timeout},
};

use self::{
    armed::{armed, limits},
    rules::scope,
    scheduler::{ScanScheduler, Why},
    tell::BATCH,
};
use crate::{
    aggregate::Aggregator,
    alert::Alert,
    config::{Config, Source},
    inventory::{self, Scan},
    model::{Event, Printable, Severity, Transport},
    output::{Format, FormatName, Stdout},
    registry::Registry,
    sensor::{self, ExistingSocket, Health, Sensor},
    tracker::{self, ThisHost, Tracker},
    util::console,
};

/// What the monitor is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The form of the alerts.
    pub format: FormatName,
    /// Where the configuration comes from, at start and on SIGHUP.
    pub source: Source,
    /// How to arm the sensor.
    pub sensor: sensor::Options,
    /// How often to look whether the sensor is whole.
    pub health_interval: Duration,
}

/// How long a reader of stdout that takes nothing holds up the end.
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
    let config = options.source.load()?;
    // Before arming, so that a signal during start does not leave the work half done.
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
    give_back_memory();
    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let scheduler = ScanScheduler::new(scope(&config, &registry, options));
    let policy = Rc::new(config.policy.clone());
    let mut tracker = Tracker::new(
        ThisHost::default(),
        registry,
        host_name(),
        Rc::clone(&policy),
    );
    tracker.set_policy(policy, config.dry_run);
    let mut monitor = Monitor {
        sensor,
        scheduler,
        collapse: Aggregator::new(config.aggregate, host_name()),
        tracker,
        config,
        format: options.format.format(colour),
        stdout,
        events: Vec::with_capacity(BATCH),
        alerts: Vec::with_capacity(BATCH),
        told: Vec::with_capacity(BATCH),
        scan: None,
        is_first_survey: true,
        has_more: false,
        settled: None,
        repeats: None,
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
    tracker: Tracker<ThisHost>,
    scheduler: ScanScheduler,
    collapse: Aggregator,
    format: Box<dyn Format>,
    stdout: Stdout,
    events: Vec<Event>,
    alerts: Vec<Alert>,
    told: Vec<Alert>,
    /// A snapshot that was taken and not joined yet.
    scan: Option<std::io::Result<Scan>>,
    /// Whether none was joined yet.
    is_first_survey: bool,
    /// Whether there is more in the ring than was taken in one turn.
    has_more: bool,
    /// When to look for lost reports once more.
    settled: Option<Instant>,
    /// When to take what the kernel side counted.
    repeats: Option<Instant>,
    health: Interval,
}

impl Monitor {
    /// Prints alerts until stdout fails. May be cancelled: what it holds then, `finish` prints.
    async fn watch(&mut self) -> Result<()> {
        loop {
            let due = self.scheduler.next();
            let sums = self.collapse.due().map(Instant::from_std);
            let (settled, repeats) = (self.settled, self.repeats);
            tokio::select! {
                () = std::future::ready(()), if self.has_more => {}
                ready = self.sensor.readable() => ready.context("waiting for the ring buffer")?,
                () = until(settled) => {
                    self.settled = None;
                    self.tell_lost()?;
                }
                () = until(repeats) => self.tell_repeats()?,
                _ = self.health.tick() => self.check_health(),
                taken = self.scheduler.taken() => self.scan = Some(taken),
                () = until(due), if !self.has_more => {}
                () = until(sums) => {}
                gone = self.stdout.gone() => return Err(gone.into()),
            }
            self.has_more = self.print_batches().await?;
            // The ring is empty: what happened before a snapshot was begun or taken is known.
            if !self.has_more
                && let Some(scan) = self.scan.take()
            {
                self.reconcile(scan);
                self.stdout.flush().await?;
            }
            self.collapse
                .flush(Instant::now().into_std(), &mut self.told);
            self.write();
            self.stdout.flush().await?;
            if self.tracker.wants_snapshot() {
                self.scheduler.ask(Why::Holders);
            }
            if !self.has_more && self.scan.is_none() && self.scheduler.is_due() {
                self.tracker.begin_snapshot();
                self.scheduler.begin();
            }
        }
    }

    /// Queues the alerts for what a snapshot shows that events have not.
    fn reconcile(&mut self, scan: std::io::Result<Scan>) {
        let scan = match scan {
            Ok(scan) => scan,
            Err(error) => {
                self.warn(&format!(
                    "the sockets that are there could not be read: {error}"
                ));
                self.tracker.end_waiting(&mut self.alerts);
                self.write();
                return;
            }
        };
        for (inode, cookie) in scan.netns_cookies() {
            tracker::Host::learn(self.tracker.host(), cookie, inode);
        }
        if self.sensor.is_counting() {
            self.tracker.overrun();
        }
        let (sensor, tracker) = (&mut self.sensor, &mut self.tracker);
        let is_first = std::mem::replace(&mut self.is_first_survey, false);
        let (findings, coverage) = scan.findings(|held, event| {
            if tracker.is_to_mark(event, held.netns)
                && let Some(socket) = inventory::duplicate(held)
                && let Some(cookie) = held.cookie
            {
                let adoption = ExistingSocket {
                    cookie,
                    transport: held.transport,
                    local: held.local,
                };
                return Some(sensor.mark_existing(socket.as_fd(), &adoption));
            }
            // Its close is reported, or has been: nothing else says that it is gone.
            if tracker.is_marked(event, held.netns) {
                return Some(false);
            }
            // Gone, if it had holders and none has it any more.
            let mut holders = held.holders.iter();
            let is_there = held.holders.is_empty()
                || holders.any(|holder| inventory::is_held_by(held, *holder));
            // After the first, what is found and not known is what a lost report was about.
            let is_marked = !is_first && !held.holders.is_empty();
            let is_new = !tracker.knows(event, held.netns);
            is_there.then_some(is_new && is_marked)
        });
        if self
            .tracker
            .reconcile(findings, &coverage, &mut self.alerts)
        {
            self.scheduler.ask(Why::Loss);
        }
        if is_first && self.tracker.has_unmarked() {
            self.scheduler.ask(Why::Unmarked);
        }
        self.write();
    }

    /// Looks whether the sensor is whole, and queues an alert for each change.
    fn check_health(&mut self) {
        for Health { regained, detail } in self.sensor.check() {
            let severity = if regained {
                Severity::Warning
            } else {
                Severity::Critical
            };
            self.report_health(severity, &detail);
        }
        if !self.sensor.missing_cgroups().is_empty() {
            self.find_cgroups();
        }
        let forgotten = self.tracker.take_forgotten();
        if forgotten > 0 {
            self.warn(&format!(
                "too many sockets on watched ports: {forgotten} were forgotten, the oldest first"
            ));
        }
        if self.tracker.has_unmarked() {
            self.scheduler.ask(Why::Unmarked);
        }
        self.write();
    }

    /// Detaches, and prints what was reported until then.
    async fn finish(mut self) -> Result<()> {
        self.sensor.disarm();
        self.tracker.end_waiting(&mut self.alerts);
        self.write();
        while timeout(LAST_FLUSH, self.print_batch())
            .await
            .map_err(|_| self.stdout.stalled())??
        {}
        self.tell_lost()?;
        self.tell_repeats()?;
        self.collapse
            .finish(Instant::now().into_std(), &mut self.told);
        self.write();
        timeout(LAST_FLUSH, self.stdout.flush())
            .await
            .map_err(|_| self.stdout.stalled())??;
        Ok(())
    }
}

/// Lets the kernel have what the allocator keeps for later.
fn give_back_memory() {
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
