//! `cargo xtask`: sets up what the build needs, builds, runs and tests portwatch.

mod bench;
mod boot;
mod cgroup;
mod dist;
mod fuzz;
mod lint;
mod soak;
mod tools;
mod vm;
mod words;

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

/// Sets up, builds, runs and tests portwatch
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Install the build's tools: rust-src, and bpf-linker into a directory of its own
    Setup,
    /// Set up, and build target/release/portwatch with the BPF object embedded
    Build,
    /// Set up, build, and run the monitor on this host (through sudo when not root)
    Run {
        /// Arguments of `portwatch run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Set up, install the tests' programs, and run every test (through sudo when not root)
    Test {
        /// Arguments of `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run the conformance suite on Debian's kernels in QEMU and print one table
    Vm(vm::Options),
    /// Measure the cost of portwatch against the same work without it (as root)
    Bench(bench::Options),
    /// Run as the first process of a guest of `bench`
    #[command(hide = true)]
    BenchGuest(bench::GuestOptions),
    /// Run the fuzz targets on what reads input from outside
    Fuzz(fuzz::Options),
    /// Run the monitor for long beside everything that can disturb it, and check what it reports (as root)
    Soak(soak::Options),
    /// Take ports for `soak`
    #[command(hide = true)]
    SoakWorker(soak::WorkerOptions),
    /// Build static executables and packages into target/dist
    Dist(dist::Options),
    /// Install, use and remove the Debian package on booted Debian systems (as root)
    Boot(boot::Options),
    /// Check formatting, lints, spelling, wording, documentation, dependencies and licences
    Lint,
    /// Generate the embedded registry from IANA's CSV
    Registry {
        /// IANA's service-names-port-numbers.csv
        file: PathBuf,
        /// Date of the file [default: the newest date in it]
        #[arg(long, value_name = "YYYY-MM-DD")]
        as_of: Option<String>,
    },
}

/// The embedded registry's file in the source tree.
const TABLE: &str = "portwatch/src/registry/table.txt";

fn main() -> ExitCode {
    match dispatch(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> Result<()> {
    // A guest has no workspace.
    if !matches!(task, Task::BenchGuest(_) | Task::SoakWorker(_)) {
        std::env::set_current_dir(workspace()?).context("entering the workspace")?;
    }
    match task {
        Task::Setup => tools::set_up(),
        Task::Build => build(),
        Task::Run { arguments } => {
            build()?;
            let mut command = as_root(agent());
            command.arg("run").args(arguments);
            Err(command.exec()).context("starting the monitor")
        }
        Task::Test { arguments } => test(&arguments),
        Task::Vm(options) => vm::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::BenchGuest(options) => bench::run_guest(&options),
        Task::Fuzz(options) => fuzz::run_all(&options),
        Task::Soak(options) => soak::run_all(&options),
        Task::SoakWorker(options) => soak::work(&options),
        Task::Dist(options) => dist::run_all(&options),
        Task::Boot(options) => boot::run_all(&options),
        Task::Lint => lint::run_all(),
        Task::Registry { file, as_of } => registry(&file, as_of.as_deref()),
    }
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")
}

/// Where `cargo xtask build` leaves the agent.
fn agent() -> PathBuf {
    target().join("release/portwatch")
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from)
}

fn build() -> Result<()> {
    tools::set_up()?;
    run(cargo().args(["build", "--release", "--locked", "--package", "portwatch"]))
}

fn test(arguments: &[OsString]) -> Result<()> {
    tools::set_up()?;
    tools::set_up_tests()?;
    let mut command = cargo();
    command.args(["test", "--locked"]);
    // cargo rejects the feature when only other packages are selected.
    if !arguments
        .iter()
        .any(|argument| argument == "-p" || argument == "--package")
    {
        command.args(["--features", "portwatch/testing"]);
    }
    command.args(arguments);
    if !is_root() {
        // Only the tests run as root, so that cargo's files belong to the user.
        command.args(["--config", "target.'cfg(unix)'.runner=['sudo','-E']"]);
    }
    run(&mut command)
}

fn registry(file: &Path, as_of: Option<&str>) -> Result<()> {
    build()?;
    let mut command = Command::new(agent());
    command
        .args(["registry", "--table", "--registry"])
        .arg(file);
    if let Some(as_of) = as_of {
        command.args(["--registry-as-of", as_of]);
    }
    let output = command.output().context("starting the agent")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    fs::write(TABLE, output.stdout).with_context(|| format!("writing {TABLE}"))?;
    eprintln!("xtask: wrote {TABLE}; look at `git diff` before you commit it");
    Ok(())
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `program`, through sudo when this is not root.
fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    command
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command to its end, and takes its output.
fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, stderr.trim());
    }
    Ok(output)
}

/// Runs a command to its end; its output goes to the terminal.
fn run(command: &mut Command) -> Result<()> {
    let name = format!("{command:?}").replace('"', "");
    let status = command
        .status()
        .with_context(|| format!("starting {name}"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}
