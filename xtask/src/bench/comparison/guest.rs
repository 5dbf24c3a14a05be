//! This program as the first process of a virtual machine that has kprobes. It measures and prints to the
//! console: `@row` and JSON per row, `@done` at the end.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

use super::{
    super::loopback,
    portwatch,
    rounds::{Plan, measure},
    traced::Work,
    tracer::Tracer,
    words,
};

/// Passed by the kernel's command line.
#[derive(clap::Args)]
pub(crate) struct Options {
    rounds: usize,
    operations: u32,
    seconds: u64,
}

/// Measures and switches the machine off.
pub(crate) fn run(options: &Options) -> Result<()> {
    // Any other process must not mount file systems or power off the machine.
    anyhow::ensure!(
        std::process::id() == 1,
        "bench-guest runs only as the first process of a guest"
    );
    match rows(options) {
        Ok(()) => println!("@done"),
        Err(error) => println!("@failed {error:#}"),
    }
    reboot(RebootMode::RB_POWER_OFF)?;
    Ok(())
}

fn rows(options: &Options) -> Result<()> {
    mount_all()?;
    loopback("/bin/ip")?;
    let plan = Plan {
        rounds: options.rounds,
        operations: options.operations,
        samples: options.operations / 10,
        short: Duration::from_secs(options.seconds),
    };
    // On a pipe it would buffer its lines.
    let bindsnoop = ["/usr/bin/stdbuf", "-oL", "/usr/sbin/bindsnoop"];
    let bindsnoop = Tracer::new("bindsnoop (libbpf-tools)", &bindsnoop, words());
    let tracers = vec![portwatch("/portwatch", "bind"), bindsnoop];
    print("UDP bind, close", &Work::Bind, tracers, plan)?;

    let tcpaccept = ["/usr/sbin/tcpaccept-bpfcc"];
    let tcpaccept = Tracer::new("tcpaccept (bpfcc-tools)", &tcpaccept, words());
    let tracers = vec![portwatch("/portwatch", "accept"), tcpaccept];
    print(
        "TCP connect, accept, close",
        &Work::accept()?,
        tracers,
        plan,
    )
}

fn print(what: &str, work: &Work, tracers: Vec<Tracer>, plan: Plan) -> Result<()> {
    for row in measure(work, tracers, plan)?.ratios(what) {
        println!("@row {}", row.as_json());
    }
    Ok(())
}

fn mount_all() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        fs::create_dir_all(target)?;
        match mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        ) {
            // The kernel may have mounted /dev (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(error) => return Err(error).context(format!("mounting {kind} on {target}")),
        }
    }
    Ok(())
}
