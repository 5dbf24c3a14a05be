//! The monitor: arms the sensor and turns its events and snapshots into lines until it is told to
//! stop.

mod armed;
mod surveyor;

use std::{os::fd::AsFd as _, path::PathBuf, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, Interval, interval_at, sleep_until, timeout},
};

use self::{
    armed::{armed, limits, missing_cgroups},
    surveyor::Surveyor,
};
use crate::{
    alert::{Alert, Severity},
    cli,
    collapse::Collapse,
    event::{Event, Transport},
    host::ThisHost,
    occupancy::Occupancies,
    output::{Format, FormatName, Stdout},
    policy::{Policy, Quiet, Refusals},
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
    /// Where the rules come from; None without any.
    pub config: Option<PathBuf>,
    /// How to arm the sensor.
    pub sensor: sensor::Options,
    /// Tell everything one by one, whatever the configuration says.
    pub no_collapse: bool,
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
    let mut hangup = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    let policy = Rc::new(options.policy.clone());
    let watched = policy.watched(&registry, &Transport::ALL);
    let sensor = Sensor::arm(&options.sensor, watched, &refusals(&policy, &registry))?;
    cli::say(&armed(options, &registry, &sensor));
    for limit in limits(options, &sensor) {
        cli::say(&limit);
    }

    // Loading took many times what running takes.
    give_back_memory();
    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut monitor = Monitor {
        sensor,
        surveyor: Surveyor::new(scope(&policy, &registry, options)),
        collapse: Collapse::new(policy.quiet, host_name()),
        occupancies: Occupancies::new(ThisHost::default(), registry, host_name(), policy),
        format: options.format.format(colour),
        stdout,
        events: Vec::with_capacity(BATCH),
        alerts: Vec::with_capacity(BATCH),
        told: Vec::with_capacity(BATCH),
        survey: None,
        is_first_survey: true,
        settled: None,
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
    occupancies: Occupancies<ThisHost>,
    surveyor: Surveyor,
    collapse: Collapse,
    format: Box<dyn Format>,
    stdout: Stdout,
    events: Vec<Event>,
    alerts: Vec<Alert>,
    told: Vec<Alert>,
    /// A snapshot that was taken and not joined yet.
    survey: Option<std::io::Result<Survey>>,
    /// Whether none was joined yet.
    is_first_survey: bool,
    /// When to look for lost reports once more.
    settled: Option<Instant>,
    health: Interval,
}

impl Monitor {
    /// Prints alerts until stdout fails. May be cancelled: what it holds then, `finish` prints.
    async fn watch(&mut self) -> Result<()> {
        loop {
            let due = self.surveyor.next();
            let (sums, settled) = (self.collapse.due(), self.settled);
            tokio::select! {
                ready = self.sensor.readable() => ready.context("waiting for the ring buffer")?,
                () = until(settled) => {
                    self.settled = None;
                    self.tell_lost()?;
                }
                _ = self.health.tick() => self.check_health(),
                taken = self.surveyor.taken() => self.survey = Some(taken),
                () = until(due) => {}
                () = until(sums.map(Instant::from_std)) => {}
                gone = self.stdout.gone() => return Err(gone.into()),
            }
            while self.print_batch().await? {
                // Lets a signal in between batches of a burst.
                tokio::task::yield_now().await;
            }
            // The ring is empty: what happened before a snapshot was begun or taken is known.
            if let Some(survey) = self.survey.take() {
                self.reconcile(survey);
                self.stdout.flush().await?;
            }
            self.collapse
                .flush(Instant::now().into_std(), &mut self.told);
            self.write();
            self.stdout.flush().await?;
            if self.occupancies.wants_snapshot() {
                self.surveyor.ask(surveyor::Why::Holders);
            }
            if self.survey.is_none() && self.surveyor.is_due() {
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
            let now = Instant::now().into_std();
            for alert in self.alerts.drain(..) {
                self.collapse.pass(alert, now, &mut self.told);
            }
            for alert in self.told.drain(..) {
                self.format.write(&alert, self.stdout.pending());
            }
            // A line that comes alone is out at once; of many, several go in one write.
            self.stdout.flush_if_full()?;
        }
        if taken > 0 {
            self.settled = Some(Instant::now() + SETTLED);
            self.tell_lost()?;
            self.stdout.flush().await?;
        }
        Ok(taken == BATCH)
    }

    /// Queues an alert for the reports that found the ring full since the last look.
    fn tell_lost(&mut self) -> Result<()> {
        let lost = self.sensor.newly_lost()?;
        if lost > 0 {
            self.told.push(self.occupancies.lose(lost));
            self.write();
            self.surveyor.ask(surveyor::Why::Loss);
        }
        Ok(())
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
        let (sensor, occupancies) = (&mut self.sensor, &mut self.occupancies);
        let is_first = std::mem::replace(&mut self.is_first_survey, false);
        let (findings, coverage) = survey.findings(|held, event| {
            if occupancies.is_to_mark(event, held.netns)
                && let Some(socket) = snapshot::duplicate(held)
                && let Some(cookie) = held.cookie
            {
                let adoption = Adoption {
                    cookie,
                    transport: held.transport,
                    local: held.local,
                };
                return Some(sensor.adopt(socket.as_fd(), &adoption));
            }
            // Its close is reported, or has been: nothing else says that it is gone.
            if occupancies.is_marked(event, held.netns) {
                return Some(false);
            }
            // Gone, if it had holders and none has it any more.
            let mut holders = held.holders.iter();
            let is_there = held.holders.is_empty()
                || holders.any(|holder| snapshot::is_held_by(held, *holder));
            // After the first, what is found and not known is what a lost report was about.
            let is_marked = !is_first && !held.holders.is_empty();
            let is_new = !occupancies.knows(event, held.netns);
            is_there.then_some(is_new && is_marked)
        });
        if self
            .occupancies
            .reconcile(findings, &coverage, &mut self.alerts)
        {
            self.surveyor.ask(surveyor::Why::Loss);
        }
        if is_first && self.occupancies.has_unmarked() {
            self.surveyor.ask(surveyor::Why::Unmarked);
        }
        self.write();
    }

    /// Puts what is to be told, after what the collapse lets through, into the output.
    fn write(&mut self) {
        let now = Instant::now().into_std();
        for alert in self.alerts.drain(..) {
            self.collapse.pass(alert, now, &mut self.told);
        }
        for alert in self.told.drain(..) {
            self.format.write(&alert, self.stdout.pending());
        }
    }

    /// Reads the rules again. What is wrong with them leaves those that hold.
    fn reload(&mut self, options: &Options) {
        let outcome = self.try_reload(options);
        let (severity, detail) = match outcome {
            Ok(said) => {
                cli::say(&said);
                return;
            }
            Err(error) => (
                Severity::Warning,
                format!("the rules stay as they were: {error:#}"),
            ),
        };
        cli::say(&detail);
        let alert = self.occupancies.report_health(severity, &detail);
        self.told.push(alert);
        self.write();
    }

    fn try_reload(&mut self, options: &Options) -> Result<String> {
        let Some(path) = &options.config else {
            return Ok("SIGHUP: there is no configuration to reload".into());
        };
        let policy = Policy {
            all: options.policy.all,
            dry_run: options.policy.dry_run,
            ..Policy::read(path)?
        };
        let quiet = Quiet {
            enabled: policy.quiet.enabled && !options.no_collapse,
            ..policy.quiet
        };
        let policy = Rc::new(Policy { quiet, ..policy });
        let registry = self.occupancies.registry();
        self.sensor
            .watch(policy.watched(registry, &Transport::ALL))?;
        self.sensor.refuse(&refusals(&policy, registry))?;
        self.surveyor.set_scope(scope(&policy, registry, options));
        self.collapse.set_quiet(quiet);
        for limit in missing_cgroups(&self.sensor) {
            cli::say(&limit);
        }
        let said = format!("reloaded {}: {} rules", path.display(), policy.rules.len());
        self.occupancies.set_policy(policy);
        // On a port that was not watched before, something can sit.
        self.surveyor.ask(surveyor::Why::Loss);
        Ok(said)
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
            self.told.push(alert);
        }
        if !self.sensor.missing_cgroups().is_empty() {
            self.find_cgroups();
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
        self.write();
    }

    /// Looks again for the cgroups of rules that refuse.
    fn find_cgroups(&mut self) {
        let refusals = refusals(self.occupancies.policy(), self.occupancies.registry());
        if let Err(error) = self.sensor.refuse(&refusals) {
            self.warn(&error.to_string());
        }
    }

    /// Queues an alert about the monitor itself.
    fn warn(&mut self, detail: &str) {
        let alert = self.occupancies.report_health(Severity::Warning, detail);
        self.told.push(alert);
    }

    /// Detaches, and prints what was reported until then.
    async fn finish(mut self) -> Result<()> {
        self.sensor.disarm();
        self.occupancies.end_waiting(&mut self.alerts);
        self.write();
        let rest = async {
            while self.print_batch().await? {}
            self.tell_lost()?;
            self.collapse
                .finish(Instant::now().into_std(), &mut self.told);
            self.write();
            self.stdout.flush().await?;
            anyhow::Ok(())
        };
        match timeout(LAST_FLUSH, rest).await {
            Ok(result) => result,
            Err(_) => Err(self.stdout.stalled().into()),
        }
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

/// What the kernel side is to refuse.
fn refusals(policy: &Policy, registry: &Registry) -> Refusals {
    if policy.dry_run {
        return Refusals::default();
    }
    policy.refusals(registry)
}

/// What snapshots are to show.
fn scope(policy: &Policy, registry: &Registry, options: &Options) -> Scope {
    Scope {
        watched: policy.watched(registry, &Transport::ALL).collect(),
        cgroup: options.sensor.cgroup.clone(),
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
