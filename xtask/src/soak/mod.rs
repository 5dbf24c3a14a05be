//! `cargo xtask soak`: the monitor beside processes, namespaces, cgroups and users that come and go,
//! reloads, detached hooks, stops, kills and a blocked reader, for minutes or hours. What lasted must
//! have been reported once, under its own name, and nothing that the monitor holds may grow.

mod oracle;
mod worker;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::fd::{FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use self::oracle::Oracle;
pub(crate) use self::worker::{Options as WorkerOptions, run as work};
use crate::{agent, build, cgroup::Cgroup, is_root, run};

#[derive(Args)]
pub(crate) struct Options {
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// A monitor that is built already [default: build it]
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// Processes that take ports at the same time.
const WORKERS: usize = 2;

/// How often something disturbs the monitor, in seconds.
const EVERY: u64 = 4;

/// How often it is killed and started again, in seconds.
const RESTART: u64 = 600;

/// By how much memory, descriptors and threads may grow after a monitor's first minute: its caches fill.
const GROWTH: Resources = Resources {
    rss_kb: 8192,
    fds: 4,
    threads: 2,
};

const SECOND_NS: u64 = 1_000_000_000;

/// `CLOCK_MONOTONIC` in nanoseconds, the same for all processes.
fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        now.tv_sec() as u64 * SECOND_NS + now.tv_nsec() as u64
    })
}

/// What is shared with the threads that read.
#[derive(Default)]
struct Shared {
    oracle: Mutex<Oracle>,
    /// Until when nobody reads the monitor's alerts.
    blocked: AtomicU64,
}

impl Shared {
    fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
struct Resources {
    rss_kb: u64,
    fds: u64,
    threads: u64,
}

impl Resources {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        Ok(Self {
            rss_kb: field("VmRSS:"),
            fds: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
            threads: field("Threads:"),
        })
    }

    /// The less of both: a scan takes more for a moment.
    fn least(self, other: Self) -> Self {
        Self {
            rss_kb: self.rss_kb.min(other.rss_kb),
            fds: self.fds.min(other.fds),
            threads: self.threads.min(other.threads),
        }
    }

    const fn exceeds(&self, before: &Self) -> bool {
        self.rss_kb > before.rss_kb + GROWTH.rss_kb
            || self.fds > before.fds + GROWTH.fds
            || self.threads > before.threads + GROWTH.threads
    }
}

/// A running monitor; killed when dropped.
struct Monitor {
    child: Child,
    reader: Option<JoinHandle<Result<()>>>,
}

impl Monitor {
    fn start(program: &Path, config: &Path, cgroup: &Path, shared: &Arc<Shared>) -> Result<Self> {
        let mut child = Command::new(program)
            .args([
                "run",
                "--format",
                "json",
                "--health-interval",
                "1",
                "--config",
            ])
            .arg(config)
            .arg("--cgroup")
            .arg(cgroup)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the monitor")?;
        let mut log = BufReader::new(child.stderr.take().context("no pipe")?);
        let mut line = String::new();
        log.read_line(&mut line)?;
        if !line.contains("armed") {
            bail!("the monitor did not start: {line}");
        }
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::stderr()));
        let alerts = BufReader::new(child.stdout.take().context("no pipe")?);
        let shared = Arc::clone(shared);
        let reader = thread::spawn(move || {
            for line in alerts.lines() {
                let line = line.context("reading alerts")?;
                let now = now_ns();
                let left = shared.blocked.load(Ordering::Relaxed).saturating_sub(now);
                sleep(Duration::from_nanos(left));
                shared.oracle().alert(&line, now_ns())?;
            }
            Ok(())
        });
        Ok(Self {
            child,
            reader: Some(reader),
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("signalling the monitor")
    }

    /// Whether it still runs and its alerts can be read.
    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the monitor has ended: {status}");
        }
        Ok(())
    }

    /// Waits for its end.
    fn join(&mut self) -> Result<()> {
        self.child.wait()?;
        match self.reader.take().map(JoinHandle::join) {
            Some(Err(_)) => bail!("the reader of alerts panicked"),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that take ports; they end by themselves.
struct Workers(Vec<(Child, JoinHandle<Result<()>>)>);

impl Workers {
    fn start(seconds: u64, cgroup: &Path, shared: &Arc<Shared>) -> Result<Self> {
        let mut all = Vec::new();
        for _ in 0..WORKERS {
            let join = r#"echo $$ > "$0/cgroup.procs" && exec "$1" soak-worker --seconds "$2" --cgroup "$0""#;
            let mut child = Command::new("sh")
                .args(["-c", join])
                .arg(cgroup)
                .arg(std::env::current_exe()?)
                .arg(seconds.to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?;
            let lines = BufReader::new(child.stdout.take().context("no pipe")?);
            let shared = Arc::clone(shared);
            let reader = thread::spawn(move || {
                for line in lines.lines() {
                    shared.oracle().happened(&line?)?;
                }
                Ok(())
            });
            all.push((child, reader));
        }
        Ok(Self(all))
    }

    fn join(self) -> Result<()> {
        for (mut child, reader) in self.0 {
            let status = child.wait()?;
            match reader.join() {
                Ok(result) => result?,
                Err(_) => bail!("the reader of a worker panicked"),
            }
            if !status.success() {
                bail!("a worker: {status}");
            }
        }
        Ok(())
    }
}

/// Detaches a BPF link, as `bpftool link detach` does.
fn detach(link: u32) -> Result<()> {
    const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
    const BPF_LINK_DETACH: libc::c_long = 34;
    let bpf = |command: libc::c_long, number: u32| {
        let attributes = [number, 0, 0, 0];
        // SAFETY: the kernel reads the sixteen bytes, which outlive the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 16) };
        (result >= 0)
            .then_some(result)
            .ok_or_else(std::io::Error::last_os_error)
    };
    let fd = bpf(BPF_LINK_GET_FD_BY_ID, link).context("opening a link")?;
    // SAFETY: a new descriptor, which this process owns alone.
    let _owned = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    bpf(BPF_LINK_DETACH, fd as u32).context("detaching a link")?;
    Ok(())
}

/// The ids of the BPF links that a process has open.
fn links(pid: u32) -> Result<Vec<u32>> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten();
    let infos = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    let id = |info: String| {
        let mut lines = info.lines();
        lines.find_map(|line| line.strip_prefix("link_id:")?.trim().parse().ok())
    };
    Ok(infos.filter_map(id).collect())
}

/// Disturbs the monitor in one of several ways.
fn disturb(monitor: &Monitor, shared: &Shared, random: &mut worker::Random) -> Result<()> {
    let now = now_ns();
    match random.below(4) {
        0 => monitor.signal(Signal::SIGHUP)?,
        1 => {
            monitor.signal(Signal::SIGSTOP)?;
            sleep(Duration::from_millis(50 + random.below(400)));
            monitor.signal(Signal::SIGCONT)?;
        }
        2 => {
            let until = now + random.below(2 * SECOND_NS);
            shared.blocked.store(until, Ordering::Relaxed);
        }
        _ => {
            let links = links(monitor.child.id())?;
            if !links.is_empty() {
                detach(links[random.below(links.len() as u64) as usize])?;
                // Until the next check, and the scan that follows it.
                shared.oracle().disturb(now, now + 3 * SECOND_NS);
            }
        }
    }
    Ok(())
}

pub(crate) fn run_all(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the monitor, namespaces and cgroups need root");
    }
    let program = match &options.agent {
        Some(program) => program.clone(),
        None => {
            build()?;
            agent()
        }
    };
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    // Users may take the port, too.
    let sysctl = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    fs::write(sysctl, "0").with_context(|| format!("writing {sysctl}"))?;
    let cgroup = Cgroup::new("soak")?;
    let config = std::env::temp_dir().join(format!("portwatch-soak-{}.toml", std::process::id()));
    fs::write(&config, "[aggregate]\nmax_rate = 0\n")?;
    let result = soak(&program, &config, &cgroup, options.minutes * 60);
    fs::remove_file(&config)?;
    result
}

fn soak(program: &Path, config: &Path, cgroup: &Cgroup, seconds: u64) -> Result<()> {
    let shared = Arc::new(Shared::default());
    let start = || Monitor::start(program, config, &cgroup.0, &shared);
    let mut monitor = start()?;
    let workers = Workers::start(seconds, &cgroup.0, &shared)?;
    let mut random = worker::Random::new();
    let mut problems = Vec::new();
    // Of this monitor, once it has been running for a while.
    let mut before: Option<Resources> = None;
    let mut least: Option<Resources> = None;
    for second in 1..=seconds {
        sleep(Duration::from_secs(1));
        monitor.check()?;
        if second % RESTART == 0 && second < seconds {
            let now = now_ns();
            monitor.signal(Signal::SIGKILL)?;
            monitor.join()?;
            monitor = start()?;
            // Its first scan shows what is open; marks follow a second later.
            shared.oracle().disturb(now, now_ns() + 3 * SECOND_NS);
            (before, least) = (None, None);
            // What it holds now is not what it holds after a minute.
            continue;
        } else if second % EVERY == 0 {
            disturb(&monitor, &shared, &mut random)?;
        }
        if second % 5 == 0 {
            let now = Resources::of(monitor.child.id())?;
            least = Some(least.map_or(now, |least| least.least(now)));
        }
        if second % 60 == 0
            && let Some(held) = least.take()
        {
            match before {
                Some(before) if held.exceeds(&before) => {
                    problems.push(format!("from {before:?} to {held:?}"));
                }
                Some(_) => {}
                None => before = Some(held),
            }
            print(&shared, second / 60, held);
        }
    }
    workers.join()?;
    shared.blocked.store(0, Ordering::Relaxed);
    let held = Resources::of(monitor.child.id())?;
    monitor.signal(Signal::SIGTERM)?;
    monitor.join()?;
    let mut oracle = shared.oracle();
    // Nothing more comes.
    oracle.judge(u64::MAX);
    drop(oracle);
    print(&shared, seconds / 60, held);
    let oracle = shared.oracle();
    problems.extend(oracle.mistakes.iter().cloned());
    for problem in &problems {
        eprintln!("xtask: {problem}");
    }
    if oracle.judged == 0 || oracle.wrong > 0 || oracle.lost > 0 || !problems.is_empty() {
        bail!(
            "{} wrong, {} lost of {}",
            oracle.wrong,
            oracle.lost,
            oracle.judged
        );
    }
    Ok(())
}

fn print(shared: &Shared, minute: u64, held: Resources) {
    let mut oracle = shared.oracle();
    let now = now_ns();
    oracle.judge(now);
    println!(
        "minute {minute}: {} events, {} alerts, {} sockets that lasted, {} wrong, {} lost, \
         {} reports did not fit the ring; RSS {} KB, {} descriptors, {} threads",
        oracle.events,
        oracle.alerts,
        oracle.judged,
        oracle.wrong,
        oracle.lost,
        oracle.ring_full,
        held.rss_kb,
        held.fds,
        held.threads
    );
}
