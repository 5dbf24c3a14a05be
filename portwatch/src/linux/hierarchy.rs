//! Who chose the names on a cgroup's path. A directory belongs to whoever may create entries in it:
//! below one that root has delegated, names are anybody's.
#![forbid(unsafe_code)]

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rustix::fs::{CWD, Mode, OFlags, Stat, fgetxattr, fstat, getxattr, openat};

use super::{cgroup::is_hierarchy_root, mountinfo};

/// Hexadecimal digits of an invocation id (`SD_ID128_TO_STRING` in systemd,
/// src/libsystemd/sd-id128/sd-id128.c).
const INVOCATION_ID: usize = 32;

/// What a directory's `trusted.` attributes say. Only a process with `CAP_SYS_ADMIN` over the host can set
/// or see them (xattr_permission in fs/xattr.c, Linux 6.18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// The service manager gave the directory to another program.
    pub is_delegated: bool,
    /// The service manager started a unit in it.
    pub has_invocation_id: bool,
}

impl Trusted {
    /// Reads them from an open directory. Nothing is seen without `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn read(directory: BorrowedFd<'_>) -> Self {
        let attribute = |name| {
            let mut value = [0; INVOCATION_ID + 1];
            let len = fgetxattr(directory, name, &mut value[..]).ok();
            (value, len.unwrap_or(0))
        };
        let (delegate, len) = attribute("trusted.delegate");
        let is_delegated = delegate.get(..len) == Some(b"1");
        let (id, len) = attribute("trusted.invocation_id");
        Self {
            is_delegated,
            has_invocation_id: id.get(..len).is_some_and(is_invocation_id),
        }
    }
}

fn is_invocation_id(value: &[u8]) -> bool {
    value.len() == INVOCATION_ID && value.iter().all(u8::is_ascii_hexdigit)
}

/// Reads the `trusted.` attributes of an open directory; None when that is not possible now.
pub type Reader = Box<dyn Fn(BorrowedFd<'_>) -> Option<Trusted> + Send + Sync>;

static READER: OnceLock<Reader> = OnceLock::new();

/// Sets how this process reads `trusted.` attributes from now on; the first call counts. Without it, it
/// reads them itself.
pub fn read_with(reader: Reader) {
    let _ = READER.set(reader);
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its mount point.
    pub root: PathBuf,
    /// Whether it is version 2.
    pub is_v2: bool,
    /// Of version 1: the mount options, which have each controller and `name=NAME`.
    options: Vec<u8>,
}

/// The hierarchies that are mounted as a whole: first those mounts that nothing covers, and that show the
/// root also from within a cgroup namespace.
#[must_use]
pub fn all() -> Vec<Hierarchy> {
    let mounts = mountinfo::own().into_iter();
    let mut all: Vec<Hierarchy> = mounts
        .filter(|mount| mount.root == Path::new("/"))
        .filter_map(|mount| {
            let is_v2 = match &*mount.fs_type {
                b"cgroup2" => true,
                b"cgroup" => false,
                _ => return None,
            };
            Some(Hierarchy {
                root: mount.mount_point,
                is_v2,
                options: mount.super_options,
            })
        })
        .collect();
    let shows_root = |one: &Hierarchy| {
        let found = one.root.metadata();
        found.is_ok_and(|found| is_hierarchy_root(&found))
    };
    all.sort_by_cached_key(|one| !shows_root(one));
    all
}

/// The hierarchy of version 2.
#[must_use]
pub fn v2() -> Option<Hierarchy> {
    all().into_iter().find(|one| one.is_v2)
}

/// One directory on a cgroup's path, whose name root chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Whether the service manager says that it is a unit.
    pub is_unit: bool,
}

impl Hierarchy {
    /// Whether proc_pid_cgroup(5) calls it by these controllers: empty for version 2, else
    /// `cpu,cpuacct` or `name=systemd`.
    #[must_use]
    pub fn has(&self, controllers: &[u8]) -> bool {
        fn words(list: &[u8]) -> impl Iterator<Item = &[u8]> {
            list.split(|byte| *byte == b',')
        }
        match controllers.is_empty() {
            true => self.is_v2,
            false => {
                !self.is_v2
                    && words(controllers).all(|one| words(&self.options).any(|word| word == one))
            }
        }
    }

    /// The first directories on `path`, a path below the root of the hierarchy: those that root
    /// created, since no directory above them is delegated. Reads attributes of cgroupfs, which does
    /// not block.
    #[must_use]
    pub fn chosen_by_root<'a>(&self, path: &'a [u8]) -> Vec<Step<'a>> {
        self.steps(path, true)
    }

    /// Whether root created every directory on `path`; None where that cannot be read now.
    #[must_use]
    pub fn is_chosen_by_root(&self, path: &[u8]) -> Option<bool> {
        let names = path.split(|byte| *byte == b'/');
        let depth = names.filter(|name| !name.is_empty()).count();
        if self.steps(path, true).len() == depth {
            return Some(true);
        }
        let perhaps = self.steps(path, false).len() == depth;
        (!perhaps).then_some(false)
    }

    /// As [`chosen_by_root`](Self::chosen_by_root); whether a directory whose attributes cannot be read
    /// now counts as delegated.
    fn steps<'a>(&self, path: &'a [u8], if_unknown: bool) -> Vec<Step<'a>> {
        let mut names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .peekable();
        let mut steps = Vec::new();
        if names.peek().is_none() {
            return steps;
        }
        let Some(mut directory) = open(CWD, &self.root) else {
            return steps;
        };
        let mut attributes = Directory::of(&directory);
        for name in names {
            // Above the root of this cgroup namespace.
            if name == b".." || attributes.is_none_or(|one| one.is_delegated(if_unknown)) {
                break;
            }
            let child = open(&directory, name);
            attributes = child.as_ref().and_then(Directory::of);
            // A directory that has been removed had its name from the same hands.
            steps.push(Step {
                name,
                is_unit: attributes
                    .as_ref()
                    .is_some_and(|one| one.is_unit(self.is_v2)),
            });
            let Some(child) = child else { break };
            directory = child;
        }
        steps
    }
}

fn open<P: rustix::path::Arg>(parent: impl std::os::fd::AsFd, name: P) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).ok()
}

/// An open directory and its attributes.
struct Directory {
    /// By which its extended attributes can be read although it is only open as a path.
    path: String,
    stat: Stat,
    /// None where they cannot be read now.
    trusted: Option<Trusted>,
}

impl Directory {
    fn of(directory: &OwnedFd) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = openat(directory, ".", flags, Mode::empty()).ok();
        Some(Self {
            path: format!("/proc/self/fd/{}", directory.as_raw_fd()),
            stat: fstat(directory.as_fd()).ok()?,
            trusted: readable.and_then(|directory| match READER.get() {
                Some(read) => read(directory.as_fd()),
                None => Some(Trusted::read(directory.as_fd())),
            }),
        })
    }

    /// Whether someone besides root may create directories in it, or the service manager gave it to
    /// another program for that (`cgroup_delegate_xattr_apply` in systemd, src/core/cgroup.c; older
    /// versions set the `trusted.` one only).
    fn is_delegated(&self, if_unknown: bool) -> bool {
        !is_roots_alone(&self.stat)
            || (self.trusted).map_or(if_unknown, |trusted| trusted.is_delegated)
            || self
                .attribute("user.delegate")
                .is_some_and(|value| value == b"1")
    }

    /// Whether the system's service manager wrote a unit's invocation id on it
    /// (`cgroup_invocation_id_xattr_apply` in systemd, src/core/cgroup.c). The `user.` one is as good as
    /// the directory's owner.
    fn is_unit(&self, is_v2: bool) -> bool {
        // In version 1, the owner of a directory can move any of its processes into it.
        let can_be_joined = !is_v2 && !is_roots_alone(&self.stat);
        !can_be_joined
            && (self
                .trusted
                .is_some_and(|trusted| trusted.has_invocation_id)
                || is_roots_alone(&self.stat)
                    && self
                        .attribute("user.invocation_id")
                        .is_some_and(|value| is_invocation_id(&value)))
    }

    /// None for one that is absent, or longer than any that is looked for.
    fn attribute(&self, name: &str) -> Option<Vec<u8>> {
        let mut value = [0; INVOCATION_ID + 1];
        let len = getxattr(&*self.path, name, &mut value[..]).ok()?;
        value.get(..len).map(<[u8]>::to_vec)
    }
}

/// Whether root owns it and nobody else may write to it.
#[must_use]
pub fn is_roots_alone(stat: &Stat) -> bool {
    const GROUP: u32 = 0o020;
    const OTHERS: u32 = 0o002;
    stat.st_uid == 0
        && stat.st_mode & OTHERS == 0
        && (stat.st_gid == 0 || stat.st_mode & GROUP == 0)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use rustix::fs::{Gid, Uid, XattrFlags, chown, setxattr};

    use super::*;

    const ID: &[u8] = b"0123456789abcdef0123456789abcdef";

    /// A new cgroup below the root of the v2 hierarchy, removed with those below it.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, below: &str) -> (Hierarchy, Self) {
            let v2 = all().into_iter().find(|one| one.is_v2);
            let v2 = v2.expect("this test needs a mounted cgroup v2 hierarchy and root");
            let top = v2
                .root
                .join(format!("portwatch-{name}-{}", std::process::id()));
            fs::create_dir_all(top.join(below)).unwrap();
            (v2, Self(top))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fn remove(path: &Path) {
                for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                    if entry.path().is_dir() {
                        remove(&entry.path());
                    }
                }
                let _ = fs::remove_dir(path);
            }
            remove(&self.0);
        }
    }

    fn set(path: &Path, name: &str, value: &[u8]) {
        setxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    #[test]
    fn names_below_a_delegated_directory_are_not_roots() {
        type Delegate = fn(&Path);
        let cases: [(&str, Delegate, usize); 7] = [
            ("none", |_| {}, 3),
            (
                "owner",
                |path| chown(path, Some(Uid::from_raw(65_534)), None).unwrap(),
                1,
            ),
            (
                "group",
                |path| {
                    chown(path, None, Some(Gid::from_raw(65_534))).unwrap();
                    fs::set_permissions(path, fs::Permissions::from_mode(0o775)).unwrap();
                },
                1,
            ),
            (
                "others",
                |path| {
                    fs::set_permissions(path, fs::Permissions::from_mode(0o757)).unwrap();
                },
                1,
            ),
            ("trusted", |path| set(path, "trusted.delegate", b"1"), 1),
            ("user", |path| set(path, "user.delegate", b"1"), 1),
            ("not", |path| set(path, "trusted.delegate", b"0"), 3),
        ];
        for (name, delegate, expected) in cases {
            let (v2, tree) = Tree::new(name, "x/nginx.service");
            delegate(&tree.0);
            let path = tree
                .0
                .strip_prefix(&v2.root)
                .unwrap()
                .join("x/nginx.service");
            let steps = v2.chosen_by_root(path.as_os_str().as_encoded_bytes());
            assert_eq!(steps.len(), expected, "{name}: {steps:?}");
        }
    }

    #[test]
    fn a_unit_has_the_service_managers_mark() {
        let nobody: fn(&Path) = |path| chown(path, Some(Uid::from_raw(65_534)), None).unwrap();
        let roots: fn(&Path) = |_| {};
        let cases = [
            ("trusted", "trusted.invocation_id", ID, roots, true),
            ("of-user", "trusted.invocation_id", ID, nobody, true),
            ("user", "user.invocation_id", ID, roots, true),
            ("forged", "user.invocation_id", ID, nobody, false),
            ("short", "trusted.invocation_id", &ID[1..], roots, false),
            ("other", "trusted.portwatch", ID, roots, false),
        ];
        for (name, key, value, owner, expected) in cases {
            let (v2, tree) = Tree::new(name, "nginx.service");
            let unit = tree.0.join("nginx.service");
            set(&unit, key, value);
            owner(&unit);
            let path = unit.strip_prefix(&v2.root).unwrap();
            let steps = v2.chosen_by_root(path.as_os_str().as_encoded_bytes());
            assert_eq!(steps.last().unwrap().is_unit, expected, "{name}");
        }
    }

    #[test]
    fn a_path_out_of_the_hierarchy_or_of_a_removed_cgroup_shows_no_unit() {
        let (v2, tree) = Tree::new("gone", "");
        let gone = tree.0.strip_prefix(&v2.root).unwrap().join("x.service/y");
        let steps = v2.chosen_by_root(gone.as_os_str().as_encoded_bytes());
        let names: Vec<&[u8]> = steps.iter().map(|step| step.name).collect();
        assert_eq!(names[1..], [b"x.service"]);
        assert!(steps.iter().all(|step| !step.is_unit));
        assert!(v2.chosen_by_root(b"/../etc").is_empty());
    }

    #[test]
    fn a_hierarchy_is_found_by_its_controllers() {
        let hierarchy = |is_v2, options: &[u8]| Hierarchy {
            root: "/".into(),
            is_v2,
            options: options.into(),
        };
        let (v2, cpu) = (hierarchy(true, b"rw"), hierarchy(false, b"rw,cpu,cpuacct"));
        let named = hierarchy(false, b"rw,xattr,name=systemd");
        let cases: [(&Hierarchy, &[u8], bool); 7] = [
            (&v2, b"", true),
            (&v2, b"cpu", false),
            (&cpu, b"", false),
            (&cpu, b"cpu,cpuacct", true),
            (&cpu, b"cpu,memory", false),
            (&named, b"name=systemd", true),
            (&named, b"name=other", false),
        ];
        for (hierarchy, controllers, expected) in cases {
            assert_eq!(hierarchy.has(controllers), expected, "{controllers:?}");
        }
    }
}
