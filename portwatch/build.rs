//! Builds the eBPF object and hands it to the agent as `OUT_DIR/portwatch-ebpf`.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// The toolchain of rust-toolchain.toml.
const TOOLCHAIN: &str = "1.95.0";

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../portwatch-common/src");
    println!("cargo::rerun-if-changed=../Cargo.toml");
    for name in ["PORTWATCH_TOOLS", "XDG_CACHE_HOME", "HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let Some(linker_directory) =
        linker_directory().filter(|directory| directory.join("bpf-linker").exists())
    else {
        println!("cargo::error=bpf-linker 0.10.4 is missing: run `cargo xtask setup`");
        return Ok(());
    };
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(linker_directory).chain(env::split_paths(&path)))?;
    // SAFETY: no other thread runs in this build script yet.
    unsafe {
        env::set_var("PATH", path);
        // `-Z build-std`, for the eBPF crate only: the agent's own build never sees this.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // aya-build passes every line of progress on as a warning.
        env::set_var("CARGO_TERM_QUIET", "true");
    }

    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("no manifest directory")?);
    let root_dir = manifest.join("../portwatch-ebpf");
    let features: &[&str] = if env::var_os("CARGO_FEATURE_DEBUG").is_some() {
        &["debug"]
    } else {
        &[]
    };
    aya_build::build_ebpf(
        [Package {
            name: "portwatch-ebpf",
            root_dir: root_dir
                .to_str()
                .context("the path of the source tree is not UTF-8")?,
            no_default_features: false,
            features,
        }],
        Toolchain::Custom(TOOLCHAIN),
    )
}

/// Where `cargo xtask setup` puts bpf-linker; xtask/src/tools.rs must agree.
fn linker_directory() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")));
    let tools = env::var_os("PORTWATCH_TOOLS")
        .map(PathBuf::from)
        .or_else(|| cache.map(|cache| cache.join("portwatch/tools")))?;
    Some(tools.join("bpf-linker-0.10.4/bin"))
}
