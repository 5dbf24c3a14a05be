//! One guest: the suite is its first process and starts the monitor; results come over the console.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    cpio::Archive,
    kernels::{Files, Kernel},
    modules,
    table::{Column, Row},
};
use crate::cargo;

/// The guest's programs, linked statically: it has no libraries.
pub(super) struct Binaries {
    suite: Vec<u8>,
    monitor: Vec<u8>,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the suite and the monitor for a guest.
pub(super) fn build() -> Result<Binaries> {
    let arguments = [
        "test",
        "--no-run",
        "--package",
        "portwatch",
        "--test",
        "conformance",
    ];
    let [suite, monitor] = static_programs(&arguments, "vm", ["conformance", "portwatch"])?;
    Ok(Binaries { suite, monitor })
}

/// Programs that cargo builds with those arguments, linked statically.
pub(crate) fn static_programs<const COUNT: usize>(
    arguments: &[&str],
    profile: &str,
    names: [&str; COUNT],
) -> Result<[Vec<u8>; COUNT]> {
    let mut command = cargo();
    command
        .args(arguments)
        .args([
            "--locked",
            "--profile",
            profile,
            "--target",
            TARGET,
            "--message-format",
            "json-render-diagnostics",
        ])
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        )
        .stderr(Stdio::inherit());
    let output = command.output().context("starting cargo")?;
    if !output.status.success() {
        bail!("building the guest's programs: {}", output.status);
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages")?;
    let messages: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let program = |name: &str| -> Result<Vec<u8>> {
        let path = messages
            .iter()
            .filter(|message| message["target"]["name"] == name)
            .find_map(|message| message["executable"].as_str())
            .with_context(|| format!("cargo built no {name}"))?;
        fs::read(path).with_context(|| path.to_owned())
    };
    let programs: Vec<Vec<u8>> = names.into_iter().map(program).collect::<Result<_>>()?;
    programs.try_into().ok().context("a program for each name")
}

/// Boots `kernel` and runs the suite on it.
pub(super) fn run(kernel: &'static Kernel, binaries: &Binaries, timeout: Duration) -> Column {
    let mut column = Column {
        kernel,
        release: String::new(),
        rows: Vec::new(),
        error: None,
        seconds: 0,
    };
    let started = Instant::now();
    if let Err(error) = boot(&mut column, binaries, timeout) {
        column.error = Some(format!("{error:#}"));
    }
    column.seconds = started.elapsed().as_secs();
    column
}

fn boot(column: &mut Column, binaries: &Binaries, timeout: Duration) -> Result<()> {
    let files = column.kernel.files()?;
    column.release.clone_from(&files.release);
    let directory = Path::new("target/vm").join(column.kernel.name);
    fs::create_dir_all(&directory)?;
    let initramfs = directory.join("initramfs.cpio");
    fs::write(&initramfs, archive(&files, binaries)?)?;
    let console = directory.join("console.log");
    let end = emulate(&Guest {
        kernel: column.kernel,
        image: &files.image,
        initramfs: &initramfs,
        console: &console,
        megabytes: 768,
        arguments: "",
        timeout,
    });
    let text = fs::read(&console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let done = read_rows(&text, &mut column.rows);
    match (end, done) {
        (Ok(()), true) => Ok(()),
        (end, _) => {
            let problem = end
                .err()
                .map_or_else(|| "the suite ended early".into(), |error| error.to_string());
            let last: Vec<&str> = text.lines().collect();
            let last = last[last.len().saturating_sub(30)..].join("\n    ");
            bail!(
                "{problem}; the console ({}) ends with:\n    {last}",
                console.display()
            )
        }
    }
}

fn archive(files: &Files, binaries: &Binaries) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "tmp", "modules"] {
        archive.directory(directory);
    }
    archive.console();
    archive.file("init", &binaries.suite);
    archive.file("portwatch", &binaries.monitor);
    let modules = modules::collect(&files.modules)?;
    let mut order = String::new();
    for (name, _) in &modules {
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes());
    for (name, contents) in &modules {
        archive.file(&format!("modules/{name}"), contents);
    }
    Ok(archive.finish())
}

/// A virtual machine's configuration.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) image: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// The file that its console output goes to.
    pub(crate) console: &'a Path,
    pub(crate) megabytes: u32,
    /// Arguments of its first process, separated by spaces.
    pub(crate) arguments: &'a str,
    pub(crate) timeout: Duration,
}

/// Runs the guest until it switches itself off.
pub(crate) fn emulate(guest: &Guest<'_>) -> Result<()> {
    let log = fs::File::create(guest.console)?;
    let command_line = format!(
        "console=ttyS0 quiet loglevel=1 panic=-1 -- {}",
        guest.arguments
    );
    let mut machine = Command::new("qemu-system-x86_64")
        // Emulated, so that it runs without /dev/kvm.
        .args([
            "-accel",
            "tcg,thread=single",
            "-cpu",
            guest.kernel.cpu,
            "-smp",
            "2",
            "-m",
        ])
        .arg(guest.megabytes.to_string())
        .args([
            "-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none",
        ])
        .arg("-no-reboot")
        .args(["-append", command_line.trim_end_matches([' ', '-'])])
        .arg("-kernel")
        .arg(guest.image)
        .arg("-initrd")
        .arg(guest.initramfs)
        .stdin(Stdio::null())
        .stdout(log)
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let deadline = Instant::now() + guest.timeout;
    loop {
        if let Some(status) = machine.try_wait()? {
            if status.success() {
                return Ok(());
            }
            bail!("qemu ended with {status}");
        }
        if Instant::now() > deadline {
            machine.kill()?;
            machine.wait()?;
            bail!(
                "the guest hung: it did not end within {} s",
                guest.timeout.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Reads the suite's results; whether the suite ran to its end.
fn read_rows(console: &str, rows: &mut Vec<Row>) -> bool {
    let mut done = false;
    for line in console.lines() {
        // A kernel message can precede it on the line.
        if let Some((_, json)) = line.split_once("@row ")
            && let Ok(row) = serde_json::from_str::<Value>(json.trim())
        {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let (scenario, outcome, detail) = (text("scenario"), text("outcome"), text("detail"));
            rows.push(Row {
                scenario,
                outcome,
                detail,
            });
        }
        done |= line.contains("@done ");
    }
    done
}
