//! The mounts of a process: `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#![forbid(unsafe_code)]

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt as _, path::PathBuf};

/// One mount. Paths may hold any byte but NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The path within the file system that is mounted.
    pub root: PathBuf,
    /// Where it is mounted, as seen from the root directory of the process.
    pub mount_point: PathBuf,
    /// The file system's type, such as `cgroup2`.
    pub fs_type: Vec<u8>,
    /// Options of the file system as a whole, separated by commas: of a cgroup v1 hierarchy, its
    /// controllers or its name.
    pub super_options: Vec<u8>,
}

/// The mounts of this process; empty when /proc cannot be read.
#[must_use]
pub fn own() -> Vec<Mount> {
    of("thread-self")
}

/// The mounts of a process by its name in /proc; empty when they cannot be read.
#[must_use]
pub fn of(process: &str) -> Vec<Mount> {
    let bytes = fs::read(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    bytes
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect()
}

/// One line; None for one that is not in the kernel's format.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = fields.nth(3)?;
    let mount_point = fields.next()?;
    // Any number of optional fields follows, up to a lone hyphen.
    fields.find(|field| *field == b"-")?;
    let fs_type = fields.next().filter(|name| !name.is_empty())?;
    Some(Mount {
        root: path(root),
        mount_point: path(mount_point),
        fs_type: unescape(fs_type),
        // The source stands in between.
        super_options: unescape(fields.nth(1).unwrap_or_default()),
    })
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// Decodes `\ooo`, by which the kernel writes space, tab, newline and backslash (`show_mountinfo` in
/// fs/proc_namespace.c, `mangle_path` in fs/seq_file.c, Linux 6.18). Anything else is kept.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) =
            (first, tail)
        {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn a_line_is_parsed_or_skipped_alone() {
        type Expected = Option<(&'static [u8], &'static [u8], &'static [u8])>;
        let cases: [(&[u8], Expected); 9] = [
            (
                b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
                Some((b"/mnt1", b"/mnt2", b"ext3")),
            ),
            (
                b"24 30 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw",
                Some((b"/", b"/sys/fs/cgroup", b"cgroup2")),
            ),
            (
                b"99 1 0:4 net:[4026532100] /run/netns/a rw shared:5 master:2 - nsfs nsfs rw",
                Some((b"net:[4026532100]", b"/run/netns/a", b"nsfs")),
            ),
            (
                b"99 1 0:4 net:[7] /run/a\\040b\\011c\\012d\\134e rw - nsfs nsfs rw",
                Some((b"net:[7]", b"/run/a b\tc\nd\\e", b"nsfs")),
            ),
            (
                b"99 1 0:4 / /mnt/\xff\xfe rw - tmpfs tmpfs rw",
                Some((b"/", b"/mnt/\xff\xfe", b"tmpfs")),
            ),
            // Not the kernel's escapes: kept.
            (
                b"1 1 0:4 / /a\\04 rw - tmpfs tmpfs rw",
                Some((b"/", b"/a\\04", b"tmpfs")),
            ),
            // A mount point that is called as the separator.
            (b"1 1 0:4 / - rw - tmpfs x rw", Some((b"/", b"-", b"tmpfs"))),
            (b"1 1 0:4 / /a rw", None),
            (b"", None),
        ];
        for (line, expected) in cases {
            let mount = parse(line);
            let found = mount.as_ref().map(|mount| {
                (
                    mount.root.as_os_str().as_bytes(),
                    mount.mount_point.as_os_str().as_bytes(),
                    &*mount.fs_type,
                )
            });
            assert_eq!(found, expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_mount_point_that_is_not_utf8_hides_no_other_mount() {
        use nix::{
            mount::{MsFlags, mount},
            sched::{CloneFlags, unshare},
        };

        let directory = tempfile::tempdir().unwrap();
        let odd = directory
            .path()
            .join(std::ffi::OsStr::from_bytes(b"\xff a\\"));
        fs::create_dir(&odd).unwrap();
        let point = odd.clone();
        let of_thread = std::thread::spawn(move || {
            let none = None::<&str>;
            // Needs root. The mounts end with the thread.
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, flags, none).unwrap();
            mount(none, &point, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            (own(), super::super::cgroup::root())
        });
        let (mounts, root) = of_thread.join().unwrap();
        assert!(mounts.iter().any(|mount| mount.mount_point == odd));
        assert!(mounts.len() > own().len());
        assert_eq!(root, super::super::cgroup::root());
    }
}
