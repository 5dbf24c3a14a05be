//! The monitor: arms the sensor and turns its events into lines until it is told to stop.

use std::{os::unix::fs::MetadataExt as _, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, Interval, interval_at, sleep_until, timeout},
};

use crate::{
    alert::Severity,
    cli,
    event::{Event, Transport},
    host::ThisHost,
    occupancy::Occupancies,
    output::{Format, FormatName, Stdout},
    policy::Policy,
    printable::Printable,
    registry::Registry,
    sensor::{self, Health, Sensor, Tracepoint},
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
    for limit in limits(options) {
        cli::say(limit);
    }

    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut monitor = Monitor {
        sensor,
        occupancies: Occupancies::new(ThisHost::default(), registry, host_name()),
        format: options.format.format(colour),
        stdout,
        events: Vec::with_capacity(BATCH),
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
    format: Box<dyn Format>,
    stdout: Stdout,
    events: Vec<Event>,
    health: Interval,
}

impl Monitor {
    /// Prints alerts until stdout fails. May be cancelled: what it holds then, `finish` prints.
    async fn watch(&mut self) -> Result<()> {
        let mut settled: Option<Instant> = None;
        loop {
            tokio::select! {
                ready = self.sensor.readable() => {
                    ready.context("waiting for the ring buffer")?;
                    settled = Some(Instant::now() + SETTLED);
                }
                () = until(settled) => settled = None,
                _ = self.health.tick() => self.check_health(),
                gone = self.stdout.gone() => return Err(gone.into()),
            }
            while self.print_batch().await? {
                // Lets a signal in between batches of a burst.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Prints what is in the ring, a batch at most, and what was lost. Whether there may be more.
    async fn print_batch(&mut self) -> Result<bool> {
        self.stdout.flush().await?;
        self.sensor.take(BATCH, &mut self.events);
        let taken = self.events.len();
        for event in self.events.drain(..) {
            let alert = self.occupancies.observe(&event);
            self.format.write(&alert, self.stdout.pending());
            // Each line at once: the reader may act on it while the next one is made.
            self.stdout.flush_now()?;
        }
        let lost = self.sensor.newly_lost()?;
        if lost > 0 {
            self.format
                .write(&self.occupancies.lose(lost), self.stdout.pending());
        }
        self.stdout.flush().await?;
        Ok(taken == BATCH)
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
    }

    /// Detaches, and prints what was reported until then.
    async fn finish(mut self) -> Result<()> {
        self.sensor.disarm();
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

/// The line that says that the monitor is armed, and what it covers.
fn armed(options: &Options, registry: &Registry, sensor: &Sensor) -> String {
    let counts: Vec<String> = sensor
        .transports()
        .map(|transport| {
            let count = options.policy.watched(registry, &[transport]).count();
            format!("{count} {}", transport.name())
        })
        .collect();
    let as_of = registry
        .as_of()
        .map_or_else(|| "of unknown date".into(), |date| date.to_string());
    let uncovered = match sensor.tracepoint() {
        Tracepoint::NotNeeded => "sctp and dccp are not loaded".into(),
        Tracepoint::Attached(_) => "sctp and dccp from listen on".into(),
        Tracepoint::Refused(transports, why) => {
            let names: Vec<&str> = transports
                .iter()
                .map(|transport| transport.name())
                .collect();
            format!("not covered: {} ({why})", names.join(", "))
        }
    };
    format!(
        "armed: {} programs at {}; watching {} ports ({}; registry {as_of}) in every network \
         namespace; {uncovered}; what was there before is not covered",
        sensor.programs(),
        sensor.cgroup(),
        counts.join(", "),
        if options.policy.all {
            "all system ports"
        } else {
            "not assigned by IANA"
        },
    )
}

/// Inodes of the first namespaces of their kind (include/linux/proc_ns.h, `PROC_*_INIT_INO`).
const INITIAL_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What the namespaces that the agent itself is in keep from it.
fn limits(options: &Options) -> Vec<&'static str> {
    let elsewhere = |kind: &str, initial: u64| {
        std::fs::metadata(format!("/proc/self/ns/{kind}"))
            .is_ok_and(|namespace| namespace.ino() != initial)
    };
    let mut limits = Vec::new();
    if options.sensor.cgroup.is_none() && elsewhere("cgroup", INITIAL_CGROUP_NAMESPACE) {
        limits.push(
            "in a cgroup namespace: only this cgroup and those below it are watched, not the host",
        );
    }
    if elsewhere("pid", INITIAL_PID_NAMESPACE) {
        limits.push("in a pid namespace: /proc does not show the processes of the host");
    }
    limits
}

fn host_name() -> Printable {
    nix::unistd::gethostname().map_or_else(
        |_| Printable::from("unknown"),
        |name| Printable::from(name.as_os_str()),
    )
}
