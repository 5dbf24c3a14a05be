//! A guest with kprobes, which bcc's tools need and not every host has.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::rounds::RATIOS;
use crate::{
    bench::{Effort, Figure, Row},
    vm::{Archive, Guest, emulate, kernel, static_programs},
};

/// Whose bcc is made for it: both come from one release of Debian's.
const KERNEL: &str = "6.1";

/// bindsnoop; tcpaccept, which libbpf-tools does not have; stdbuf; ip.
const PACKAGES: [&str; 4] = ["libbpf-tools", "bpfcc-tools", "coreutils", "iproute2"];

/// What no program of the guest reads, of 440 MB.
const UNUSED: [&str; 3] = ["usr/share", "usr/lib/x86_64-linux-gnu/gconv", "var"];

/// The rows of one boot, or one that says why there are none.
pub(super) fn measure(effort: Effort) -> Vec<Row> {
    boot(effort).unwrap_or_else(|error| {
        let text = format!("{error:#}").replace(['\n', '|'], " ");
        vec![Row::of(
            format!("QEMU, {KERNEL}: refused: {text}"),
            &RATIOS,
            [],
        )]
    })
}

fn boot(effort: Effort) -> Result<Vec<Row>> {
    let kernel = kernel(KERNEL)?;
    let files = kernel.files()?;
    let peers = kernel.packages(&files.release, &PACKAGES)?;
    // What users run is what is measured, so it is the release, only linked statically.
    let [init, monitor] = static_programs(
        &["build", "--package", "xtask", "--package", "portwatch"],
        "release",
        ["xtask", "portwatch"],
    )?;
    let folder = Path::new("target/vm/peers");
    fs::create_dir_all(folder)?;
    let initramfs = folder.join("initramfs.cpio");
    let mut archive = Archive::default();
    archive.folder("dev");
    archive.console();
    archive.file("init", &init);
    archive.file("portwatch", &monitor);
    add(&mut archive, &peers, Path::new(""))?;
    fs::write(&initramfs, archive.finish())?;
    // bcc takes half a minute to start there.
    let rounds = effort.rounds.div_ceil(3);
    let operations = effort.operations / 10;
    let seconds = effort.seconds.as_secs();
    let console = folder.join("console.log");
    let guest = Guest {
        kernel,
        image: &files.image,
        initramfs: &initramfs,
        console: &console,
        megabytes: 2048,
        arguments: &format!("bench-guest {rounds} {operations} {seconds}"),
        timeout: Duration::from_secs(1800),
    };
    eprintln!("xtask: booting {} for bcc's tools", files.release);
    let end = emulate(&guest);
    fs::remove_file(&initramfs)?;
    let text = fs::read(&console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let rows: Vec<Row> = text.lines().filter_map(read).collect();
    if !text.contains("@done") {
        let problem = end.err().map(|error| error.to_string());
        let last: Vec<&str> = text.lines().rev().take(3).collect();
        bail!("{}: {}", problem.unwrap_or_default(), last.join(" / "));
    }
    Ok(rows)
}

/// A row as the guest told it.
fn read(line: &str) -> Option<Row> {
    let (_, json) = line.split_once("@row ")?;
    let told: Value = serde_json::from_str(json.trim()).ok()?;
    let values = RATIOS.map(|name| Figure::from_json(&told["figures"][name], 2));
    let what = told["what"].as_str()?;
    Some(Row::of(format!("QEMU, {KERNEL}: {what}"), &RATIOS, values))
}

/// Puts what is under `root` into the archive, as far as it is of use.
fn add(archive: &mut Archive, root: &Path, folder: &Path) -> Result<()> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(root.join(folder))? {
        paths.push(folder.join(entry?.file_name()));
    }
    paths.sort();
    for path in paths {
        let name = path.to_str().context("a name that is not UTF-8")?;
        let here = root.join(&path);
        let data = fs::symlink_metadata(&here)?;
        if UNUSED.contains(&name) || is_of_other_machine(&path) {
            continue;
        } else if data.is_symlink() {
            let target = fs::read_link(&here)?;
            archive.link(name, target.to_str().context("a link that is not UTF-8")?);
        } else if data.is_dir() {
            archive.folder(name);
            add(archive, root, &path)?;
        } else if data.is_file() {
            archive.file(name, &fs::read(&here)?);
        }
    }
    Ok(())
}

/// The kernel's headers are for every architecture.
fn is_of_other_machine(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with("arch"))
        && path.starts_with("usr/src")
        && !path.ends_with("x86")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_of_this_machine_go_along() {
        for (path, expected) in [
            ("usr/src/linux-headers-6.1/arch/arm64", true),
            ("usr/src/linux-headers-6.1/arch/x86", false),
            ("usr/src/linux-headers-6.1/include", false),
            ("usr/lib/arch/arm64", false),
        ] {
            assert_eq!(is_of_other_machine(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_row_is_found_behind_what_the_kernel_says() {
        let line = r#"[  3.2] x@row {"what":"nobody","figures":{"ratio":1.0}}"#;
        let row = read(line).unwrap();
        assert_eq!(row.what, "QEMU, 6.1: nobody");
        assert_eq!(row.figures[0], ("ratio", Figure::Number(1.0, 2)));
        assert!(
            row.figures[1..]
                .iter()
                .all(|(_, figure)| *figure == Figure::None)
        );
        assert!(read("[  3.2] nothing").is_none());
    }
}
