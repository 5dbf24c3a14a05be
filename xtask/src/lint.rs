//! `cargo xtask lint`: every check that runs no test.

#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::Result;

use crate::{cargo, run, tools, words};

/// The BPF target of a little-endian host.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// Runs the checks, the quick ones first.
pub(crate) fn run_all() -> Result<()> {
    tools::set_up()?;
    words::check()?;
    run(Command::new(tools::TYPOS.install()?).arg("--format=brief"))?;
    run(Command::new(tools::TAPLO.install()?)
        .args(["format", "--check", "--diff"])
        .env("RUST_LOG", "warn"))?;
    run(&mut Command::new(tools::CARGO_MACHETE.install()?))?;
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        run(cargo().args(["fmt", "--all", "--check", "--manifest-path", manifest]))?;
    }
    clippy()?;
    run(cargo()
        .args(["doc", "--locked", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "--deny warnings"))?;
    dependencies()
}

/// Clippy as built for users, with the fixtures of tests and benches, with the debug log, and on the BPF
/// programs.
fn clippy() -> Result<()> {
    let warnings = ["--", "--deny", "warnings"];
    for arguments in [
        &["--all-targets"][..],
        &["--all-targets", "--features", "portwatch/testing"],
        &["--package", "portwatch", "--features", "debug"],
    ] {
        run(cargo()
            .args(["clippy", "--locked"])
            .args(arguments)
            .args(warnings))?;
    }
    run(cargo()
        .args(["clippy", "--locked", "--package", "portwatch-ebpf"])
        .args(["--all-features", "--target", BPF_TARGET])
        .arg("-Zbuild-std=core")
        .args(warnings)
        .env("RUSTC_BOOTSTRAP", "1"))
}

/// Licences, sources and advisories of the dependencies.
fn dependencies() -> Result<()> {
    let deny = tools::CARGO_DENY.install()?;
    run(Command::new(&deny).args(["check", "bans", "licenses", "sources"]))?;
    // The advisories are in a git repository that not every network reaches.
    if Command::new(&deny)
        .args(["fetch", "db"])
        .status()
        .is_ok_and(|status| status.success())
    {
        return run(Command::new(&deny).args(["check", "advisories"]));
    }
    eprintln!("xtask: NOT CHECKED: the advisory database cannot be reached from here");
    Ok(())
}
