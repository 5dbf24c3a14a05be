//! Cgroups: from an id to a path, and from a path to a systemd unit.

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::PathBuf,
};

use super::MAX_UNIT;
use crate::{
    linux::cgroup::{in_v2, open_by_id, root},
    model::Printable,
    util::ByteBounded,
};

/// Bytes of cached paths: about a thousand of usual length.
const MAX_CACHE: usize = 128 << 10;

/// The paths of cgroups by id, for processes that have ended: the BPF programs report the id.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// Where the v2 hierarchy is mounted, if it is.
    root: Option<(PathBuf, File)>,
    cache: ByteBounded<u64, Vec<u8>>,
}

impl Default for Cgroups {
    fn default() -> Self {
        let root = root().and_then(|path| {
            let directory = File::open(&path).ok()?;
            Some((path, directory))
        });
        Self {
            root,
            cache: ByteBounded::new(MAX_CACHE),
        }
    }
}

impl Cgroups {
    /// The path of the cgroup with that id below the root of the v2 hierarchy; None when it has been
    /// removed.
    pub(super) fn path(&mut self, id: u64) -> Option<Vec<u8>> {
        if let Some(path) = self.cache.get(&id) {
            return Some(path.clone());
        }
        let (root, directory) = self.root.as_ref()?;
        let found = open_by_id(directory, id)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
        let below = path.strip_prefix(root).ok()?;
        let path = [&b"/"[..], below.as_os_str().as_bytes()].concat();
        let bytes = size_of::<(u64, Vec<u8>)>() + path.len();
        self.cache.put(id, path.clone(), bytes);
        Some(path)
    }
}

/// The controllers (none in version 2) and the path in all hierarchies, version 2 first.
pub(super) fn paths(cgroups: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let others = cgroups
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.starts_with(b"0::"))
        .filter_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
            Some((fields.next()?, fields.next()?))
        });
    let v2 = in_v2(cgroups).map(|path| (&b""[..], path));
    v2.into_iter().chain(others)
}

/// The innermost systemd unit that a cgroup path names (systemd.unit(5)).
pub(super) fn unit(cgroups: &[u8]) -> Option<Printable> {
    paths(cgroups).find_map(|(_, path)| {
        path.rsplit(|byte| *byte == b'/')
            .find(|name| is_unit(name))
            .map(|name| Printable::limited(name, MAX_UNIT))
    })
}

/// Whether processes run in units with such a name.
pub(super) fn is_unit(name: &[u8]) -> bool {
    const KINDS: [&[u8]; 5] = [b".service", b".scope", b".socket", b".mount", b".swap"];
    KINDS.iter().any(|kind| name.ends_with(kind))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_unit_is_the_innermost_one() {
        let cases = [
            ("0::/system.slice/x.service", Some("x.service")),
            ("0::/system.slice/ssh@3.service/sub", Some("ssh@3.service")),
            (
                "0::/user.slice/user-0.slice/user@0.service/app.slice/run-1.scope",
                Some("run-1.scope"),
            ),
            ("0::/user.slice/user-0.slice", None),
            ("0::/docker/0123", None),
            ("0::/", None),
            // A hybrid host: systemd uses a named v1 hierarchy.
            (
                "1:name=systemd:/system.slice/y.service\n0::/\n",
                Some("y.service"),
            ),
        ];
        for (path, expected) in cases {
            assert_eq!(unit(path.as_bytes()).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_cgroup_is_found_by_its_id() {
        let mut cgroups = Cgroups::default();
        let Some((root, _)) = &cgroups.root else {
            panic!("this test needs a mounted cgroup v2 hierarchy and root");
        };
        let name = format!("portwatch-unit-{}", std::process::id());
        let directory = root.join(&name);
        std::fs::create_dir(&directory).unwrap();
        let id = std::fs::metadata(&directory).unwrap().ino();
        let path = cgroups.path(id);
        std::fs::remove_dir(&directory).unwrap();
        assert_eq!(path, Some(format!("/{name}").into_bytes()));
        assert_eq!(cgroups.path(u64::MAX), None);
    }
}
