//! `cargo xtask fuzz`: runs the fuzz targets with libFuzzer and AddressSanitizer, on the pinned toolchain.

#![forbid(unsafe_code)]

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{run, tools};

/// How long, and which targets.
#[derive(Args)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Targets [default: all]
    targets: Vec<String>,
}

/// The most that a target may take, in MiB; with the sanitizer's own.
const MEMORY_MIB: u32 = 2048;

/// Seconds for one input: every reader is near linear in its input.
const SLOWEST: u32 = 10;

/// Bytes of an input.
const LONGEST: u32 = 64 << 10;

/// Builds the targets once and runs each; new inputs go to fuzz/generated, which is not tracked.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    tools::set_up()?;
    let all = targets()?;
    let chosen = if options.targets.is_empty() {
        &all
    } else {
        &options.targets
    };
    if let Some(unknown) = chosen.iter().find(|name| !all.contains(name)) {
        bail!("no target {unknown} (known: {})", all.join(", "));
    }
    if let Err(why) = can_run() {
        for target in chosen {
            eprintln!("xtask: SKIPPED: {target}: {why}");
        }
        return Ok(());
    }
    let cargo_fuzz = tools::CARGO_FUZZ.install()?;
    let fuzz = |subcommand: &str| {
        let mut command = Command::new(&cargo_fuzz);
        command
            .args(["fuzz", subcommand, "--fuzz-dir", "fuzz"])
            // The sanitizer needs unstable flags; everything else is as it is released.
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("CARGO_TARGET_DIR");
        command
    };
    run(&mut fuzz("build"))?;
    let mut failed = Vec::new();
    for target in chosen {
        let generated = format!("fuzz/generated/{target}");
        fs::create_dir_all(&generated).with_context(|| format!("creating {generated}"))?;
        eprintln!("xtask: {target}: {} s", options.seconds);
        let result = run(fuzz("run")
            .arg(target)
            .args([&generated, &format!("fuzz/corpus/{target}")])
            .arg("--")
            .args([
                format!("-max_total_time={}", options.seconds),
                format!("-rss_limit_mb={MEMORY_MIB}"),
                format!("-timeout={SLOWEST}"),
                format!("-max_len={LONGEST}"),
                "-print_final_stats=1".to_owned(),
                "-verbosity=0".to_owned(),
            ]));
        if let Err(error) = result {
            eprintln!("xtask: {target}: {error:#}");
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!(
            "{} failed; the inputs are in fuzz/artifacts: add them to fuzz/corpus with the mend",
            failed.join(", ")
        );
    }
    Ok(())
}

/// The targets' names, from their files.
fn targets() -> Result<Vec<String>> {
    let files = fs::read_dir("fuzz/fuzz_targets").context("reading fuzz/fuzz_targets")?;
    let names = files.flatten().filter_map(|file| {
        let name = file.file_name().into_string().ok()?;
        Some(name.strip_suffix(".rs")?.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// Why the fuzzer cannot run here, if it cannot: it has a runtime in C++, and the sanitizer's is part of
/// the toolchain for few targets.
fn can_run() -> Result<(), &'static str> {
    if !cfg!(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    )) {
        return Err("the toolchain has no AddressSanitizer for this target");
    }
    let compiles = ["c++", "g++", "clang++"].iter().any(|compiler| {
        let mut command = Command::new(compiler);
        command
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    if !compiles {
        return Err("libFuzzer needs a C++ compiler (Debian: g++)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_are_found() {
        std::env::set_current_dir(crate::workspace().unwrap()).unwrap();
        let names = targets().unwrap();
        assert!(
            names.contains(&"rules".to_owned()) && names.is_sorted(),
            "{names:?}"
        );
    }
}
