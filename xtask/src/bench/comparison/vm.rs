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
    bench::{Figure, Profile, Row},
    vm::{Archive, Guest, emulate, kernel, static_programs},
};

/// The kernel of the Debian release that bcc's packages come from.
const KERNEL: &str = "6.1";

/// bindsnoop; tcpaccept, which libbpf-tools does not have; stdbuf; ip.
const PACKAGES: [&str; 4] = ["libbpf-tools", "bpfcc-tools", "coreutils", "iproute2"];

/// Directories of the packages that no program of the guest reads.
const UNUSED: [&str; 3] = ["usr/share", "usr/lib/x86_64-linux-gnu/gconv", "var"];

/// The rows of one boot, or one row with the error.
pub(super) fn measure(profile: Profile) -> Vec<Row> {
    boot(profile).unwrap_or_else(|error| {
        let text = format!("{error:#}").replace(['\n', '|'], " ");
        vec![Row::of(
            format!("QEMU, {KERNEL}: failed: {text}"),
            &RATIOS,
            [],
        )]
    })
}

fn boot(profile: Profile) -> Result<Vec<Row>> {
    let kernel = kernel(KERNEL)?;
    let files = kernel.files()?;
    let packages = kernel.packages(&files.release, &PACKAGES)?;
    // The release profile, as users run it, but linked statically.
    let [init, monitor] = static_programs(
        &["build", "--package", "xtask", "--package", "portwatch"],
        "release",
        ["xtask", "portwatch"],
    )?;
    let directory = Path::new("target/vm/comparison");
    fs::create_dir_all(directory)?;
    let initramfs = directory.join("initramfs.cpio");
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.console();
    archive.file("init", &init);
    archive.file("portwatch", &monitor);
    add(&mut archive, &packages, Path::new(""))?;
    fs::write(&initramfs, archive.finish())?;
    // bcc takes half a minute to start in the guest.
    let rounds = profile.rounds.div_ceil(3);
    let operations = profile.operations / 10;
    let seconds = profile.seconds.as_secs();
    let console = directory.join("console.log");
    let guest = Guest {
        kernel,
        image: &files.image,
        initramfs: &initramfs,
        console: &console,
        megabytes: 2048,
        arguments: &format!("bench-guest {rounds} {operations} {seconds}"),
        timeout: Duration::from_mins(30),
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

/// A row of the guest's console output.
fn read(line: &str) -> Option<Row> {
    let (_, json) = line.split_once("@row ")?;
    let row: Value = serde_json::from_str(json.trim()).ok()?;
    let values = RATIOS.map(|name| Figure::from_json(&row["figures"][name], 2));
    let what = row["what"].as_str()?;
    Some(Row::of(format!("QEMU, {KERNEL}: {what}"), &RATIOS, values))
}

/// Adds the files below `root` to the archive, without [`UNUSED`] and other architectures' headers.
fn add(archive: &mut Archive, root: &Path, directory: &Path) -> Result<()> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(root.join(directory))? {
        paths.push(directory.join(entry?.file_name()));
    }
    paths.sort();
    for path in paths {
        let name = path.to_str().context("a name that is not UTF-8")?;
        let here = root.join(&path);
        let data = fs::symlink_metadata(&here)?;
        if UNUSED.contains(&name) || is_of_other_machine(&path) {
            continue;
        }
        if data.is_symlink() {
            let target = fs::read_link(&here)?;
            archive.link(name, target.to_str().context("a link that is not UTF-8")?);
        } else if data.is_dir() {
            archive.directory(name);
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
    fn a_row_is_found_after_a_kernel_message() {
        let line = r#"[  3.2] x@row {"what":"no tracer","figures":{"ratio":1.0}}"#;
        let row = read(line).unwrap();
        assert_eq!(row.what, "QEMU, 6.1: no tracer");
        assert_eq!(row.figures[0], ("ratio", Figure::Number(1.0, 2)));
        assert!(
            row.figures[1..]
                .iter()
                .all(|(_, figure)| *figure == Figure::None)
        );
        assert!(read("[  3.2] nothing").is_none());
    }
}
