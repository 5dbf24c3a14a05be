//! The suite as the first process of a virtual machine without other programs. It reports to
//! `cargo xtask vm` on the console: `@row` and JSON for each scenario, `@done` and JSON at the end.

use std::{fs, path::Path};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        utsname::uname,
    },
};
use portwatch::conformance::runner::{Monitor, Outcome};
use serde_json::json;

/// The path of the monitor in the initramfs that `cargo xtask vm` makes.
const PORTWATCH: &str = "/portwatch";

/// Runs the suite and powers the machine off. A run without `@done` counts as failed.
pub fn main() -> ! {
    // A panic of the first process is a kernel panic, which ends the machine and is on its console.
    let kernel = uname().unwrap().release().to_string_lossy().into_owned();
    mount_all();
    load_modules();
    let (mut ok, mut unavailable, mut failed) = (0, 0, 0);
    match Monitor::start(PORTWATCH.into()) {
        Ok(monitor) => monitor.run_all(|verdict| {
            match verdict.outcome {
                Outcome::Ok => ok += 1,
                Outcome::Unavailable => unavailable += 1,
                Outcome::Failed => failed += 1,
            }
            println!("@row {}", serde_json::to_string(&verdict).unwrap());
        }),
        Err(error) => {
            failed += 1;
            let row = json!({
                "scenario": "the monitor starts", "outcome": "failed", "detail": error.to_string()
            });
            println!("@row {row}");
        }
    }
    println!(
        "@done {}",
        json!({"kernel": kernel, "ok": ok, "na": unavailable, "failed": failed})
    );
    reboot(RebootMode::RB_POWER_OFF).unwrap();
    unreachable!("the machine is off");
}

fn mount_all() {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        fs::create_dir_all(target).unwrap();
        match mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        ) {
            // With CONFIG_DEVTMPFS_MOUNT the kernel has mounted /dev.
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(error) => panic!("mounting {kind} on {target}: {error}"),
        }
    }
}

/// Loads the modules listed in `/modules/order`; prints those that the kernel rejects.
fn load_modules() {
    let order = fs::read_to_string("/modules/order").unwrap_or_default();
    for name in order.lines() {
        let path = Path::new("/modules").join(name);
        let result = fs::File::open(&path)
            .map_err(|error| error.to_string())
            .and_then(|module| {
                finit_module(&module, c"", ModuleInitFlags::empty())
                    .map_err(|error| error.to_string())
            });
        if let Err(error) = result {
            println!("module {name}: {error}");
        }
    }
}
