//! The monitor says *when*: it arms the sensor, and gives what the ring and scans bring to the
//! pipeline until it is stopped by a signal.

mod canary;
mod cgroups;
mod gaps;
mod memory;
mod priority;
mod receive;
mod reload;
mod ring;
mod rules;
mod scan;
mod scheduler;
mod service;
mod start;

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout},
};

use self::{
    canary::Canary,
    cgroups::CgroupWatch,
    gaps::Gaps,
    priority::Priority,
    reload::Reloader,
    ring::BATCH,
    rules::scope,
    scheduler::{ScanScheduler, Urgency},
    service::Service,
    start::{armed, enter, limits},
};
use crate::{
    config::{Config, Source},
    decide::Decider,
    inventory::Scan,
    model::{Event, PortKey, Printable, Severity, Transport},
    output::{ColorChoice, FormatName, Sink, Sinks, Stdout},
    pipeline::{Input, Pipeline},
    registry::Registry,
    sandbox::{self, Sandbox},
    sensor::{self, Health, Sensor},
    tracker::ThisHost,
    util::console,
};

/// How to run the monitor.
#[derive(Clone, Debug)]
pub struct Options {
    /// The format of the alerts.
    pub format: FormatName,
    /// Whether text is coloured.
    pub color: ColorChoice,
    /// Where the configuration comes from, at start and on SIGHUP.
    pub source: Source,
    /// How to arm the sensor.
    pub sensor: sensor::Options,
    /// How often to check whether the sensor is whole.
    pub health_interval: Duration,
    /// Whether to give up privileges once armed.
    pub sandbox: bool,
    /// Whether the ring is read with real-time priority.
    pub realtime: bool,
}

/// How long a reader of stdout that takes nothing delays the end.
const LAST_FLUSH: Duration = Duration::from_secs(2);

/// For how long scans wait for the ring to be empty: under a steady flood it never is.
const BACKLOG: Duration = Duration::from_millis(200);

/// Watches until SIGINT or SIGTERM.
///
/// # Errors
///
/// [`sensor::SensorError`] when it cannot watch, [`StdoutGone`](crate::output::StdoutGone) when
/// stdout is closed or full.
pub fn run(options: &Options, registry: Registry) -> Result<()> {
    memory::set_up_allocator();
    // Before the runtime, which may start threads.
    let canary = sandbox::Canary::start(options.sensor.cgroup.as_deref());
    let sandbox = options.sandbox.then(sandbox::prepare);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    runtime.block_on(watch(options, registry, sandbox, canary))
}

async fn watch(
    options: &Options,
    registry: Registry,
    sandbox: Option<sandbox::Prepared>,
    canary: Result<sandbox::Canary, String>,
) -> Result<()> {
    let config = options.source.load()?;
    // Before arming, so that a signal meanwhile does not leave it half done.
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let stdout = Stdout::take()?;
    let mut hangup = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    let mut resume = signal(SignalKind::from_raw(libc::SIGCONT)).context("waiting for SIGCONT")?;
    let watched = config.watched(&registry, &Transport::ALL);
    let mut sensor = Sensor::arm(&options.sensor, watched, &config.deny_rules(&registry))?;
    let (priority, no_priority) = Priority::raise(options.realtime);
    let (sandbox, unsandboxed) = enter(
        sandbox,
        options.sensor.fail_closed,
        priority.needs_capability(),
    );
    sensor.count_repeats(config.aggregate.enabled);
    sensor.set_receive(config.receive);
    sensor.wake_for_sessions(config.reports_sessions());
    let armed = armed(&config, &registry, &sensor);
    console::log(&armed);
    let mut limits = limits(options, &sensor);
    limits.extend(no_priority);
    let canary = canary
        .map_err(|why| {
            limits.push(format!(
                "no canary, so BPF programs that report nothing are not noticed: {why}"
            ));
        })
        .ok();
    for message in config.warnings.iter().chain(&limits).chain(&unsandboxed) {
        console::log(message);
    }

    // Loading took many times what running takes.
    memory::release();
    memory::release_files();
    let colour = options
        .color
        .applies(stdout.is_terminal(), |name| std::env::var(name).ok());
    let format = match stdout.is_journal() {
        true => options.format.for_journal(),
        false => options.format.format(colour),
    };
    let sinks = Sinks::new(vec![Sink::Stdout(format, stdout)]);
    let scope = scope(&config, &registry, options);
    let canary = Canary::new(canary, &scope, &config.deny_rules(&registry));
    let decider = Decider::new(registry, config.policy.clone(), config.dry_run);
    let settings = config.aggregate;
    let mut health = interval_at(
        Instant::now() + options.health_interval,
        options.health_interval,
    );
    // One check is enough, however many were missed.
    health.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let cgroups = CgroupWatch::start(sensor.deny_rules().clone())?;
    let mut service = Service::start();
    service.ready(&armed);
    let mut monitor = Monitor {
        sensor,
        sandbox,
        config,
        pipeline: Pipeline::new(ThisHost::default(), host_name(), decider, settings, sinks),
        scheduler: ScanScheduler::new(scope),
        events: Vec::with_capacity(BATCH),
        scan: None,
        has_scanned: false,
        has_more: false,
        backlog_since: None,
        losses_due: None,
        counts_due: None,
        counted_due: None,
        has_overflowed: false,
        is_inexact: false,
        has_skipped: false,
        receivers: Vec::new(),
        receive_due: None,
        health,
        gaps: Gaps::new(),
        canary,
        cgroups,
        service,
        priority,
    };
    let mut reloader = Reloader::new();
    loop {
        let source = options.source.clone();
        let loaded = tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = resume.recv() => {
                monitor.end_gap();
                continue;
            }
            _ = hangup.recv() => {
                reloader.request();
                monitor.service.reloading();
                continue;
            }
            loaded = reloader.loaded(move || Ok(source.reload()?)) => loaded,
            result = monitor.watch() => return result,
        };
        monitor.reload(loaded, options);
    }
    monitor.finish().await
}

struct Monitor {
    sensor: Sensor,
    /// None where the monitor keeps its privileges.
    sandbox: Option<Sandbox>,
    config: Config,
    pipeline: Pipeline<ThisHost>,
    scheduler: ScanScheduler,
    events: Vec<Event>,
    /// A scan that is complete and not joined yet.
    scan: Option<std::io::Result<Scan>>,
    /// Whether one was joined since the last look at the sensor: scans take much memory for a moment.
    has_scanned: bool,
    /// Whether the ring holds more than was taken in one turn.
    has_more: bool,
    /// Since when the ring has not been empty.
    backlog_since: Option<Instant>,
    /// When to look for lost reports once more.
    losses_due: Option<Instant>,
    /// When to take what the BPF programs counted.
    counts_due: Option<Instant>,
    /// When to read the table of counted sockets.
    counted_due: Option<Instant>,
    /// Whether that table had no room for a socket since the BPF programs began to count.
    has_overflowed: bool,
    /// Whether it had none, or reports were lost, since the BPF programs began
    /// to count: scans must find what lasts.
    is_inexact: bool,
    /// Whether a scan showed untracked sockets without holders while they counted.
    has_skipped: bool,
    /// Sockets that were bound, and whose datagrams are to be looked at: cookie, and id of the cgroup.
    receivers: Vec<(u64, u64)>,
    /// When to look what that costs.
    receive_due: Option<Instant>,
    /// Follows the cgroups of deny rules.
    cgroups: CgroupWatch,
    health: Interval,
    gaps: Gaps,
    canary: Canary,
    service: Service,
    priority: Priority,
}

impl Monitor {
    /// Prints alerts until stdout fails. May be cancelled: what it holds then, `finish` prints.
    async fn watch(&mut self) -> Result<()> {
        loop {
            let due = self.scheduler.next();
            let flush_due = self.pipeline.due().map(Instant::from_std);
            let (losses_due, counts_due) = (self.losses_due, self.counts_due);
            let (counted_due, receive_due) = (self.counted_due, self.receive_due);
            self.release_canary();
            self.service.alive();
            self.priority.adapt();
            let alive_due = self.service.due().map(Instant::from_std);
            let priority_due = self.priority.due();
            let canary_due = self.canary.due();
            tokio::select! {
                // A signal can have come between the end of a scan and its join.
                () = std::future::ready(()), if self.has_more || self.scan.is_some() => {}
                ready = self.sensor.readable() => {
                    ready.context("waiting for the ring buffer")?;
                    self.canary.wake();
                }
                () = until(losses_due) => {
                    self.losses_due = None;
                    self.report_losses()?;
                }
                () = until(counts_due) => self.take_counts()?,
                () = until(counted_due) => {
                    self.take_counted_sockets()?;
                }
                () = until(receive_due) => self.tend_receive(),
                () = until(canary_due), if !self.has_more => self.judge_canary(),
                due = self.health.tick() => self.check_after(due.elapsed()),
                complete = self.scheduler.complete() => self.scan = Some(complete),
                () = until(due), if !self.has_more && self.scan.is_none() => {}
                () = until(flush_due) => {}
                () = until(alive_due) => {}
                () = until(priority_due) => {}
                gone = self.pipeline.sinks().gone() => return Err(gone.into()),
            }
            self.has_more = self.take_batches().await?;
            // The ring is empty: what happened before a scan began or ended is known.
            if !self.has_more {
                self.backlog_since = None;
            } else if self.backlog_since.is_none() {
                self.backlog_since = Some(Instant::now());
            }
            let is_behind = self
                .backlog_since
                .is_some_and(|since| since.elapsed() > BACKLOG);
            if (!self.has_more || is_behind)
                && let Some(scan) = self.scan.take()
            {
                if self.has_more {
                    self.pipeline.tracker().fall_behind();
                }
                let began = Instant::now();
                self.join(scan)?;
                self.has_scanned = true;
                self.scheduler.spend(began.elapsed());
            }
            self.pipeline.flush(now());
            self.pipeline.sinks_mut().flush().await?;
            self.start_receiving();
            if self.pipeline.tracker().waits_for_scan() {
                self.scheduler.request(Urgency::Loss);
            } else if self.pipeline.tracker().wants_scan() {
                self.scheduler.request(Urgency::Holders);
            }
            // What is in the ring counts as having happened during the scan.
            let may_begin = !self.has_more || is_behind;
            if may_begin && self.scan.is_none() && self.scheduler.is_due() {
                self.pipeline.begin_scan();
                let tracker = self.pipeline.tracker();
                let (targets, accepted) = (tracker.targets(), tracker.waiting_accepts());
                self.scheduler.begin(targets, accepted);
            }
        }
    }

    /// Checks the monitor's health by a timer that was `late` by that much.
    fn check_after(&mut self, late: Duration) {
        if self.gaps.notice(late) {
            self.end_gap();
        } else {
            self.check_health();
        }
    }

    /// Looks for what happened while the agent did not run.
    fn end_gap(&mut self) {
        self.check_health();
        self.scheduler.request(Urgency::Loss);
    }

    /// Checks whether the sensor is whole, and reports each change.
    fn check_health(&mut self) {
        if std::mem::take(&mut self.has_scanned) {
            memory::release();
        }
        for Health { regained, detail } in self.sensor.check() {
            let severity = if regained {
                Severity::Warning
            } else {
                Severity::Critical
            };
            self.report_health(severity, detail);
            // What happened while it was detached was not reported.
            self.scheduler.request(Urgency::Loss);
        }
        if !self.sensor.is_whole() {
            self.scheduler.request(Urgency::Unmarked);
        }
        self.check_sandbox();
        self.canary.request();
        if let Err(error) = self.sensor.deny_rules().find_cgroups() {
            self.warn(error.to_string());
        }
        let evicted = self.pipeline.tracker().take_evicted();
        if evicted > 0 {
            self.warn(format!(
                "too many sockets on watched ports: {evicted} are not tracked"
            ));
        }
        self.report_crowded();
        if self.pipeline.tracker().has_unmarked() {
            self.scheduler.request(Urgency::Unmarked);
        }
    }

    /// Reports who has more sockets on a port than are tracked.
    fn report_crowded(&mut self) {
        for crowded in self.pipeline.tracker().take_crowded() {
            let PortKey { transport, port } = crowded.port_key;
            self.warn(format!(
                "{} sockets of {} (user {}) on {port}/{} are counted only: it has too many there",
                crowded.counted,
                crowded.exe,
                crowded.uid,
                transport.name(),
            ));
        }
    }

    fn check_sandbox(&mut self) {
        let problems = self.sandbox.as_mut().map(Sandbox::check);
        for problem in problems.into_iter().flatten() {
            self.report_health(Severity::Critical, problem);
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
        self.service.stopping();
        self.sensor.disarm();
        self.pipeline.push(Input::ScanFailed, now());
        while timeout(LAST_FLUSH, self.take_batch())
            .await
            .map_err(|_| self.pipeline.sinks_mut().stalled())??
        {}
        // What is open at the end lasts, as far as anyone will ever know.
        self.take_all_counted_sockets()?;
        self.report_losses()?;
        self.take_counts()?;
        self.check_sandbox();
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

/// Sleeps until `deadline`, for ever without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Bytes of the host's name in JSON: Linux has 64 bytes, of whatever kind.
const MAX_HOST_NAME: usize = 256;

/// This host's name.
pub fn host_name() -> Printable {
    nix::unistd::gethostname().map_or_else(
        |_| Printable::from("unknown"),
        |name| Printable::limited(name.as_encoded_bytes(), MAX_HOST_NAME),
    )
}
