//! The kernel modules that scenarios need and their dependencies, in load order.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// Loaded where a kernel has them as modules: SCTP, VXLAN's sockets, vsock with a transport, and
/// sock_diag's modules, which a host loads on demand.
const WANTED: [&str; 7] = [
    "sctp",
    "vxlan",
    "vsock",
    "vsock_loopback",
    "tcp_diag",
    "udp_diag",
    "sctp_diag",
];

/// A module's file name and contents.
pub(super) type Module = (String, Vec<u8>);

/// The wanted modules of a kernel and their dependencies, in load order.
pub(super) fn collect(directory: &Path) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    index(&directory.join("kernel"), &mut files)?;
    let mut modules = Vec::new();
    for name in WANTED {
        add(name, &files, &mut modules)?;
    }
    Ok(modules)
}

/// Files by the module's name, in which `-` and `_` are the same.
fn index(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some((name, _)) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split_once(".ko"))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(name: &str, files: &HashMap<String, PathBuf>, modules: &mut Vec<Module>) -> Result<()> {
    let file_name = format!("{name}.ko");
    // Without a file it is built in or missing: the scenario's result shows which.
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    if modules.iter().any(|(known, _)| *known == file_name) {
        return Ok(());
    }
    let contents = read(path)?;
    for dependency in depends(&contents) {
        add(&dependency.replace('-', "_"), files, modules)?;
    }
    modules.push((file_name, contents));
    Ok(())
}

/// `depends=` and `softdep=pre:` of the module's .modinfo section, which is text.
fn depends(module: &[u8]) -> Vec<String> {
    let value = |key: &[u8]| {
        let start = module.windows(key.len()).position(|window| window == key)? + key.len();
        let text = module[start..].split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let names = |text: String| {
        text.split([',', ' '])
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let mut all: Vec<String> = value(b"\0softdep=pre: ").map(names).unwrap_or_default();
    all.extend(value(b"\0depends=").map(names).unwrap_or_default());
    all
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(path)?),
    };
    let output = Command::new(program).arg("-dc").arg(path).output();
    let output = output.with_context(|| format!("{program} is needed for {}", path.display()))?;
    if !output.status.success() {
        bail!("{program} {}: {}", path.display(), output.status);
    }
    Ok(output.stdout)
}
