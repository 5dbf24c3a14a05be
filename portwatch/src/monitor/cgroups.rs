//! Follows the cgroups that deny rules name. The kernel's programs know them by id, and a unit that
//! starts again has the same path with another id.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::linux::hierarchy;

/// Bytes of events that are read at once.
const BUFFER: usize = 4096;

/// Events after which it does not matter what the others are: the cgroups are looked up again.
const EVENTS: usize = 1024;

/// How often the directories on one path may change while they are looked up.
const ATTEMPTS: usize = 16;

/// The directories in which cgroups of deny rules come and go: one for each of them at most.
#[derive(Default)]
pub(super) struct CgroupWatch {
    /// None as long as there is nothing to follow.
    inotify: Option<AsyncFd<OwnedFd>>,
    paths: Vec<String>,
    /// The names that matter in each directory, by the number of its watch.
    watches: HashMap<i32, HashSet<OsString>>,
}

impl CgroupWatch {
    /// Follows these paths below the root of the v2 hierarchy from now on, instead of those before.
    ///
    /// # Errors
    ///
    /// inotify(7)'s: then some are not followed.
    pub(super) fn follow(&mut self, paths: Vec<String>) -> io::Result<()> {
        self.paths = paths;
        self.update()
    }

    /// Waits until one of the cgroups may have come or gone. May be cancelled.
    pub(super) async fn changed(&mut self) {
        loop {
            let Some(inotify) = &self.inotify else {
                return std::future::pending().await;
            };
            let Ok(mut ready) = inotify.readable().await else {
                return std::future::pending().await;
            };
            let changed = take_events(inotify.get_ref(), &self.watches);
            if changed != Some(true) {
                ready.clear_ready();
            }
            if changed.is_some() {
                return;
            }
        }
    }

    /// Watches the directories that are there now. To be called before the cgroups are looked up, so that
    /// none comes in between.
    ///
    /// # Errors
    ///
    /// As for [`follow`](Self::follow).
    pub(super) fn update(&mut self) -> io::Result<()> {
        if self.paths.is_empty() {
            self.inotify = None;
            self.watches.clear();
            return Ok(());
        }
        let Some(v2) = hierarchy::v2() else {
            return Ok(());
        };
        if self.inotify.is_none() {
            let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, as long as it lives.
            let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?;
            self.inotify = Some(inotify);
        }
        let Some(inotify) = self.inotify.as_ref().map(AsyncFd::get_ref) else {
            return Ok(());
        };
        let mut watches: HashMap<i32, HashSet<OsString>> = HashMap::new();
        let mut result = Ok(());
        for path in &self.paths {
            match watch(inotify, &v2.root, path) {
                Ok((number, name)) => {
                    watches.entry(number).or_default().insert(name);
                }
                Err(error) => result = Err(error),
            }
        }
        for number in self.watches.keys() {
            if !watches.contains_key(number) {
                // It is gone already if its directory is.
                let _ = inotify::remove_watch(inotify, *number);
            }
        }
        self.watches = watches;
        result
    }
}

/// Watches the deepest directory on the path that is there and is not its end. Also the name in it that
/// leads on.
fn watch(inotify: &OwnedFd, root: &Path, path: &str) -> io::Result<(i32, OsString)> {
    let flags = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::ATTRIB
        | WatchFlags::ONLYDIR;
    let mut error = Errno::NOENT;
    for _ in 0..ATTEMPTS {
        let (directory, name, is_last) = deepest(root, path);
        match inotify::add_watch(inotify, &directory, flags) {
            // What has come before the watch was there would not be noticed.
            Ok(_) if !is_last && directory.join(&name).is_dir() => {}
            Ok(number) => return Ok((number, name)),
            Err(problem) => error = problem,
        }
    }
    Err(error.into())
}

/// The deepest directory on the path that is there and is not its end, the name in it that leads on, and
/// whether that is the path's last.
fn deepest(root: &Path, path: &str) -> (PathBuf, OsString, bool) {
    let mut directory = root.to_path_buf();
    let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
    while let Some(name) = names.next() {
        let next = directory.join(name);
        let is_last = names.peek().is_none();
        if is_last || !next.is_dir() {
            return (directory, name.into(), is_last);
        }
        directory = next;
    }
    // The root itself, which does not come and go.
    (directory, OsString::new(), true)
}

/// Reads what has happened. Whether there is more, if any of it matters.
fn take_events(inotify: &OwnedFd, watches: &HashMap<i32, HashSet<OsString>>) -> Option<bool> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut events = Reader::new(inotify, &mut buffer);
    let mut matters = false;
    for _ in 0..EVENTS {
        match events.next() {
            Ok(event) => {
                let overflow = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                matters |= overflow
                    || watches.get(&event.wd()).is_some_and(|names| {
                        // Without a name it is the directory's own.
                        name.is_none_or(|name| names.contains(name))
                    });
            }
            Err(_) => return matters.then_some(false),
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_deepest_directory_that_is_there_is_watched() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        let cases = [
            ("/a/b/c", "a/b", "c", true),
            ("/a/b", "a", "b", true),
            ("/a/x/y", "a", "x", false),
            ("/x", "", "x", true),
            ("/", "", "", true),
        ];
        for (path, directory, name, is_last) in cases {
            let expected = (root.path().join(directory), name.into(), is_last);
            let (found, name, last) = deepest(root.path(), path);
            assert_eq!((root.path().join(found), name, last), expected, "{path}");
        }
    }

    #[test]
    fn only_names_on_a_path_wake_it_and_a_path_is_followed_as_it_grows() {
        let root = tempfile::tempdir().unwrap();
        let inotify = inotify::init(CreateFlags::NONBLOCK).unwrap();
        let follow = || {
            let (number, name) = watch(&inotify, root.path(), "/a/b").unwrap();
            HashMap::from([(number, HashSet::from([name]))])
        };
        let mut watches = follow();
        let steps = [
            ("mkdir", "other", None),
            ("mkdir", "a", Some(false)),
            ("mkdir", "a/other", None),
            ("mkdir", "a/b", Some(false)),
            ("rmdir", "a/other", None),
            ("rmdir", "a/b", Some(false)),
            ("rmdir", "a", Some(false)),
            ("mkdir", "a", Some(false)),
            ("mkdir", "a/b", Some(false)),
        ];
        for (what, name, expected) in steps {
            let path = root.path().join(name);
            match what {
                "mkdir" => fs::create_dir(path).unwrap(),
                _ => fs::remove_dir(path).unwrap(),
            }
            let taken = take_events(&inotify, &watches);
            assert_eq!(taken, expected, "{what} {name}");
            if taken.is_some() {
                watches = follow();
            }
        }
    }
}
