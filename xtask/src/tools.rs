//! Tools and Debian packages that the build, tests and lints need, and their installation.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{as_root, cargo, run};

/// A package that `cargo install` builds, pinned in tools.toml, in a directory of its own.
pub(crate) struct Tool {
    package: &'static str,
    program: &'static str,
    /// Further arguments of `cargo install`.
    arguments: &'static [&'static str],
}

/// The package's version by name.
const VERSIONS: &str = include_str!("../tools.toml");

/// portwatch/build.rs looks for it in the same directory.
const BPF_LINKER: Tool = Tool::new("bpf-linker", "bpf-linker");

/// Makes the Debian package.
pub(crate) const CARGO_DEB: Tool = Tool::new("cargo-deb", "cargo-deb");

/// Makes the RPM package.
pub(crate) const CARGO_GENERATE_RPM: Tool = Tool::new("cargo-generate-rpm", "cargo-generate-rpm");

pub(crate) const CARGO_DENY: Tool = Tool::new("cargo-deny", "cargo-deny");

/// Builds the fuzz targets with libFuzzer.
pub(crate) const CARGO_FUZZ: Tool = Tool::new("cargo-fuzz", "cargo-fuzz");

/// Finds unused dependencies.
pub(crate) const CARGO_MACHETE: Tool = Tool::new("cargo-machete", "cargo-machete");

/// Checks the format of TOML files; without its language server and its schemas' HTTP client.
pub(crate) const TAPLO: Tool = Tool {
    arguments: &["--no-default-features"],
    ..Tool::new("taplo-cli", "taplo")
};

/// Checks the spelling.
pub(crate) const TYPOS: Tool = Tool::new("typos-cli", "typos");

/// Programs that the tests run, and the Debian packages that they come in.
const TEST_PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nc", "netcat-openbsd"),
    ("nft", "nftables"),
    ("perl", "perl-base"),
    ("systemd-socket-activate", "systemd"),
    ("unshare", "util-linux"),
];

/// Programs that the benchmark runs, and the Debian packages that they come in.
const BENCH_PROGRAMS: [(&str, &str); 3] = [
    ("lsof", "lsof"),
    ("ss", "iproute2"),
    ("valgrind", "valgrind"),
];

/// Programs that boot kernels, and the Debian packages that they come in.
const VM_PROGRAMS: [(&str, &str); 4] = [
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
];

/// Programs that make packages, and the Debian packages that they come in.
const DIST_PROGRAMS: [(&str, &str); 2] = [("git", "git"), ("lowdown", "lowdown")];

/// Programs that boot a Debian system, and the Debian packages that they come in.
const BOOT_PROGRAMS: [(&str, &str); 5] = [
    ("dpkg-deb", "dpkg"),
    ("lintian", "lintian"),
    ("mmdebstrap", "mmdebstrap"),
    ("systemd-analyze", "systemd"),
    ("systemd-nspawn", "systemd-container"),
];

/// The targets of static executables.
const DIST_TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

/// Programs that portwatch is compared with, and the Debian packages that they come in.
const COMPARISON_PROGRAMS: [(&str, &str); 4] = [
    ("bpftrace", "bpftrace"),
    ("mount", "mount"),
    ("ss", "iproute2"),
    ("unshare", "util-linux"),
];

/// Installs what the build needs.
pub(crate) fn set_up() -> Result<()> {
    rust_src()?;
    BPF_LINKER.install().map(drop)
}

/// Installs what the tests need.
pub(crate) fn set_up_tests() -> Result<()> {
    install_packages(&TEST_PROGRAMS)
}

/// Installs the programs that the benchmark runs.
pub(crate) fn set_up_bench() -> Result<()> {
    install_packages(&BENCH_PROGRAMS)
}

/// Installs the programs that boot kernels.
pub(crate) fn set_up_vm() -> Result<()> {
    install_packages(&VM_PROGRAMS)
}

/// Installs what static executables and packages need.
pub(crate) fn set_up_dist() -> Result<()> {
    let installed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output()
        .context("starting rustup")?;
    let installed = String::from_utf8_lossy(&installed.stdout).into_owned();
    for target in DIST_TARGETS {
        if !installed.lines().any(|one| one == target) {
            run(Command::new("rustup").args(["target", "add", target]))?;
        }
    }
    install_packages(&DIST_PROGRAMS)
}

/// Installs what boots a Debian system.
pub(crate) fn set_up_boot() -> Result<()> {
    install_packages(&BOOT_PROGRAMS)
}

/// Installs the programs that portwatch is compared with, on this host and in a guest.
pub(crate) fn set_up_comparison() -> Result<()> {
    install_packages(&COMPARISON_PROGRAMS)?;
    set_up_vm()
}

/// Installs the Debian packages of missing programs.
fn install_packages(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| !is_on_path(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if !is_on_path("apt-get") {
        bail!("programs from the Debian packages {packages} are needed: install them");
    }
    eprintln!("xtask: installing {packages}");
    run(as_root("apt-get").arg("update").stdout(Stdio::null()))?;
    run(as_root("apt-get")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing)
        .stdout(Stdio::null()))
}

/// The standard library's source, from which `core` is built for the BPF target.
fn rust_src() -> Result<()> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("starting rustc; is Rust installed through rustup?")?;
    let sysroot = String::from_utf8(output.stdout).context("rustc's sysroot")?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if source.exists() {
        return Ok(());
    }
    eprintln!("xtask: installing the standard library's source (rust-src)");
    run(Command::new("rustup").args(["component", "add", "rust-src"]))
        .context("rust-src is needed to build for the BPF target; install it with rustup")
}

impl Tool {
    const fn new(package: &'static str, program: &'static str) -> Self {
        Self {
            package,
            program,
            arguments: &[],
        }
    }

    /// The program's path; installs it when it is missing.
    pub(crate) fn install(&self) -> Result<PathBuf> {
        let package = self.package;
        let version = version(package)?;
        let root = directory()?.join(format!("{package}-{version}"));
        let program = root.join("bin").join(self.program);
        if program.exists() {
            return Ok(program);
        }
        eprintln!(
            "xtask: building {package} {version} into {} (once, a minute or two)",
            root.display()
        );
        run(cargo()
            .args(["install", package, "--version", version, "--locked"])
            .args(self.arguments)
            .arg("--root")
            .arg(&root)
            // This workspace's settings do not apply to it.
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTFLAGS"))?;
        Ok(program)
    }
}

/// The pinned version of a package.
fn version(package: &str) -> Result<&'static str> {
    VERSIONS
        .lines()
        .find_map(|line| {
            line.strip_prefix(package)?
                .strip_prefix(" = \"")?
                .strip_suffix('"')
        })
        .with_context(|| format!("xtask/tools.toml has no version of {package}"))
}

/// The directory of the tools: `$PORTWATCH_TOOLS`, or in the user's cache.
fn directory() -> Result<PathBuf> {
    match env::var_os("PORTWATCH_TOOLS") {
        Some(directory) => Ok(directory.into()),
        None => Ok(cache()?.join("tools")),
    }
}

/// portwatch's directory in the user's cache.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set")?;
    Ok(cache.join("portwatch"))
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian installs some of them outside a user's PATH.
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_has_a_version() {
        for tool in [
            BPF_LINKER,
            CARGO_DEB,
            CARGO_DENY,
            CARGO_FUZZ,
            CARGO_GENERATE_RPM,
            CARGO_MACHETE,
            TAPLO,
            TYPOS,
        ] {
            let version = version(tool.package).unwrap();
            assert_eq!(version.split('.').count(), 3, "{}: {version}", tool.package);
        }
        assert!(version("bpf").is_err());
    }
}
