//! `cargo xtask boot`: the Debian package on booted Debian systems: install, alert, reload, restart, upgrade,
//! remove, purge. Each is a container of systemd-nspawn(1) on this kernel.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{cgroup::Cgroup, dist, is_root, run, target, tools, vm};

/// Options of `cargo xtask boot`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Debian's releases [default: bookworm, bullseye]
    releases: Vec<String>,
    /// The package to test [default: build it]
    #[arg(long)]
    deb: Option<PathBuf>,
    /// Seconds after which a system counts as hung
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

/// The newest with a service manager of its time, and the oldest whose kernel is supported.
const RELEASES: [&str; 2] = ["bookworm", "bullseye"];

/// What a system has besides the essential.
const PACKAGES: &str = "systemd-sysv,netcat-openbsd";

/// What runs in it.
const SCRIPT: &str = include_str!("guest.sh");

const UNIT: &str = "[Unit]\nAfter=multi-user.target\n\n\
    [Service]\nType=oneshot\nExecStart=/bin/sh /boot-test/run\nTimeoutStartSec=infinity\n";

/// Boots the systems one after the other.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("systems are booted as root");
    }
    tools::set_up_boot()?;
    let deb = match &options.deb {
        Some(deb) => deb.clone(),
        None => dist::debian_package()?,
    };
    run(Command::new("lintian")
        .args(["--fail-on", "error", "--allow-root"])
        .arg(&deb))?;
    // Tenths of the exposure.
    run(Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=40"])
        .arg("contrib/systemd/portwatch.service")
        .stdout(Stdio::null()))?;
    let chosen: Vec<&str> = match &*options.releases {
        [] => RELEASES.to_vec(),
        some => some.iter().map(|name| &**name).collect(),
    };
    let mut failed = Vec::new();
    for release in chosen {
        let began = Instant::now();
        let root = target().join("boot").join(release);
        let passed = boot(release, &root, &deb, Duration::from_secs(options.timeout))
            .with_context(|| format!("booting {release}"))?;
        let outcome = if passed { "passed" } else { "FAILED" };
        println!("boot {release}: {outcome}, {} s", began.elapsed().as_secs());
        if !passed {
            failed.push(release);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed on {}", failed.join(", "))
}

/// Whether everything went as it should; prints the transcript.
fn boot(release: &str, root: &Path, deb: &Path, timeout: Duration) -> Result<bool> {
    let archive = archive(release)?;
    remove(root)?;
    fs::create_dir_all(root)?;
    run(Command::new("tar")
        .args(["--extract", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(root))?;
    let test = root.join("boot-test");
    fs::create_dir(&test)?;
    fs::copy(deb, test.join("old.deb"))?;
    newer(deb, &test)?;
    fs::write(test.join("run"), SCRIPT)?;
    let unit = root.join("etc/systemd/system/boot-test.service");
    fs::write(unit, UNIT)?;
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    std::os::unix::fs::symlink("../boot-test.service", wants.join("boot-test.service"))?;

    let cgroup = Cgroup::new("boot")?;
    let ended = run_system(root, &cgroup.0, timeout);
    drop(cgroup);
    let transcript = fs::read_to_string(test.join("transcript")).unwrap_or_default();
    println!("{transcript}");
    ended?;
    let result = fs::read_to_string(test.join("result")).unwrap_or_default();
    let passed = result.trim() == "passed";
    if passed {
        remove(root)?;
    }
    Ok(passed)
}

/// Boots the system in a cgroup of its own, and waits for it to power off.
fn run_system(root: &Path, cgroup: &Path, timeout: Duration) -> Result<()> {
    let console = File::create(root.join("boot-test/console"))?;
    let procs = cgroup.join("cgroup.procs");
    let mut command = Command::new("systemd-nspawn");
    command
        .args(["--quiet", "--register=no", "--keep-unit", "--boot"])
        .args(["--capability=all", "--console=pipe"])
        .arg("--system-call-filter=bpf perf_event_open @privileged")
        .arg("--directory")
        .arg(root)
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console);
    // SAFETY: it opens and writes to a file, between fork and exec, in a process with one thread.
    unsafe {
        command.pre_exec(move || fs::write(&procs, "0"));
    }
    let mut system = command.spawn().context("starting systemd-nspawn")?;
    let began = Instant::now();
    while system.try_wait()?.is_none() {
        if began.elapsed() > timeout {
            system.kill()?;
            system.wait()?;
            bail!("it has not powered off after {} s", timeout.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The packed root of a release, from the user's cache or made.
fn archive(release: &str) -> Result<PathBuf> {
    let directory = tools::cache()?.join("roots");
    let archive = directory.join(format!("{release}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    fs::create_dir_all(&directory)?;
    eprintln!("xtask: making a Debian {release} (once, half a minute)");
    let new = directory.join(format!("{release}.new.tar"));
    run(Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--include", PACKAGES])
        .arg(release)
        .arg(&new)
        .arg(vm::mirror(release)?.trim()))?;
    fs::rename(new, &archive)?;
    Ok(archive)
}

/// The same package with a higher version.
fn newer(deb: &Path, directory: &Path) -> Result<()> {
    let unpacked = directory.join("unpacked");
    run(Command::new("dpkg-deb")
        .arg("--raw-extract")
        .arg(deb)
        .arg(&unpacked))?;
    let control = unpacked.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let lines = text
        .lines()
        .map(|line| match line.strip_prefix("Version: ") {
            Some(version) => format!("Version: {version}.1\n"),
            None => format!("{line}\n"),
        });
    fs::write(&control, lines.collect::<String>())?;
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(&unpacked)
        .arg(directory.join("new.deb"))
        .stdout(Stdio::null()))?;
    remove(&unpacked)
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}
