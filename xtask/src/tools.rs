//! Tools and Debian packages that the build, tests and lints need, and their installation.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{as_root, cargo, run};

/// A tool that cargo installs, pinned, in a directory of its own.
struct Tool {
    name: &'static str,
    version: &'static str,
}

/// 0.11 needs a system LLVM; this one uses rustc's own. portwatch/build.rs looks for it here.
const BPF_LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.10.4",
};

const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
};

/// Programs that the tests run, and the Debian packages that they come in.
const TEST_PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("nc", "netcat-openbsd"),
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

/// The path of cargo-deny, installed if need be.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    CARGO_DENY.install()
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
    /// The program's path; installs it when it is not there.
    fn install(&self) -> Result<PathBuf> {
        let Self { name, version } = self;
        let root = directory()?.join(format!("{name}-{version}"));
        let program = root.join("bin").join(name);
        if program.exists() {
            return Ok(program);
        }
        eprintln!(
            "xtask: building {name} {version} into {} (once, a minute)",
            root.display()
        );
        run(cargo()
            .args(["install", name, "--version", version, "--locked", "--root"])
            .arg(&root)
            // This workspace's settings do not apply to it.
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTFLAGS"))?;
        Ok(program)
    }
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
