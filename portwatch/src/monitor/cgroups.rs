//! Follows the cgroups that deny rules name. The kernel's programs know them by id, and a unit that
//! starts again has the same path with another id.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixStream},
    },
    path::Path,
    thread,
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portwatch_common::MAX_DENY_RULES;
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

use crate::{linux::hierarchy, sensor::Deny, util::console};

/// Bytes of the thread's stack.
const STACK: usize = 1 << 18;

/// After how many milliseconds a cgroup is looked up again when it is not known who created it.
const AGAIN_MS: u16 = 500;

/// Bytes of events that are read at once.
const BUFFER: usize = 4096;

/// Events after which it does not matter what the others are: the cgroups are looked up again.
const EVENTS: usize = 1024;

/// Directories that are watched: those of as many rules as there can be, 16 deep.
const WATCHES: usize = 16 * MAX_DENY_RULES as usize;

/// Follows them on a thread of its own, which does not wait for alerts to be printed.
pub(super) struct CgroupWatch {
    /// A byte: other rules are in force. Its end is the thread's.
    thread: UnixStream,
}

impl CgroupWatch {
    /// Begins to.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub(super) fn start(rules: Deny) -> Result<Self> {
        let (thread, changes) = UnixStream::pair()?;
        thread.set_nonblocking(true)?;
        changes.set_nonblocking(true)?;
        thread::Builder::new()
            .name("cgroups".into())
            .stack_size(STACK)
            .spawn(move || follow(&rules, changes))
            .context("following the cgroups of deny rules")?;
        Ok(Self { thread })
    }

    /// Other rules are in force.
    pub(super) fn rules_changed(&mut self) {
        // One that is full has a change in it already.
        let _ = self.thread.write(&[0]);
    }
}

/// Follows the cgroups of the rules until nobody changes them any more.
fn follow(rules: &Deny, mut changes: UnixStream) {
    let mut followed = Followed::default();
    let mut reported = String::new();
    loop {
        // The directories first, so that no cgroup comes in between.
        let result = followed.update(&rules.cgroups());
        let found = rules.find_cgroups();
        let is_certain = found.as_ref().is_ok_and(|is_certain| *is_certain);
        let problem = match (result, found) {
            (Err(error), _) => error.to_string(),
            (_, Err(error)) => error.to_string(),
            (Ok(()), Ok(_)) => String::new(),
        };
        if !problem.is_empty() && problem != reported {
            console::log(&format!(
                "some cgroups of deny rules are only looked up at each health check: {problem}"
            ));
        }
        reported = problem;
        let timeout = match is_certain {
            true => PollTimeout::NONE,
            false => PollTimeout::from(AGAIN_MS),
        };
        if !wait(&followed, &mut changes, timeout) {
            return;
        }
    }
}

/// Waits until other rules are in force, their cgroups may be others, or the time is over. False at the end.
fn wait(followed: &Followed, changes: &mut UnixStream, timeout: PollTimeout) -> bool {
    loop {
        let inotify = followed.inotify.as_ref();
        let mut ready = vec![PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
        ready.extend(inotify.map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        match poll(&mut ready, timeout) {
            Ok(0) => return true,
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return false,
        }
        match changes.read(&mut [0; 64]) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        if inotify.is_some_and(|inotify| take_events(inotify, &followed.watches)) {
            return true;
        }
    }
}

/// The directories in which the cgroups come and go.
#[derive(Default)]
struct Followed {
    /// None as long as there is nothing to follow.
    inotify: Option<OwnedFd>,
    /// The names that matter in each directory, by the number of its watch.
    watches: HashMap<i32, HashSet<OsString>>,
}

impl Followed {
    /// Watches the directories that are there now, for these paths below the root of the v2 hierarchy.
    fn update(&mut self, paths: &[String]) -> io::Result<()> {
        let Some(v2) = hierarchy::v2().filter(|_| !paths.is_empty()) else {
            *self = Self::default();
            return Ok(());
        };
        let inotify = match self.inotify.take() {
            Some(inotify) => inotify,
            None => inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
        };
        let mut watches: HashMap<i32, HashSet<OsString>> = HashMap::new();
        let mut result = Ok(());
        for path in paths {
            match watch(&inotify, &v2.root, path) {
                Ok(found) => {
                    for (number, name) in found {
                        watches.entry(number).or_default().insert(name);
                    }
                }
                Err(error) => result = Err(error),
            }
            if watches.len() > WATCHES {
                result = Err(io::Error::other(
                    "there are too many directories on their paths",
                ));
                break;
            }
        }
        for number in self.watches.keys() {
            if !watches.contains_key(number) {
                // It is gone already if its directory is.
                let _ = inotify::remove_watch(&inotify, *number);
            }
        }
        self.watches = watches;
        self.inotify = Some(inotify);
        result
    }
}

/// Watches the directories above the end of the path, as far as they are there, from the root down: what
/// comes or goes below one meanwhile is an event there. A cgroup that is removed is none in itself
/// (kernfs keeps the links of its inode, Linux 6.18). Each with the name in it that leads on.
fn watch(inotify: &OwnedFd, root: &Path, path: &str) -> io::Result<Vec<(i32, OsString)>> {
    let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ATTRIB | WatchFlags::ONLYDIR;
    let mut watches = Vec::new();
    let mut directory = root.to_path_buf();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        match inotify::add_watch(inotify, &directory, flags) {
            Ok(number) => watches.push((number, name.into())),
            Err(Errno::NOENT | Errno::NOTDIR) => break,
            Err(error) => return Err(error.into()),
        }
        directory.push(name);
    }
    Ok(watches)
}

/// Reads what has happened. Whether any of it matters.
fn take_events(inotify: &OwnedFd, watches: &HashMap<i32, HashSet<OsString>>) -> bool {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut events = Reader::new(inotify, &mut buffer);
    let mut matters = false;
    for _ in 0..EVENTS {
        let Ok(event) = events.next() else {
            return matters;
        };
        let name = event
            .file_name()
            .map(|name| OsStr::from_bytes(name.to_bytes()));
        matters |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
            || watches.get(&event.wd()).is_some_and(|names| {
                // Without a name it is the directory's own.
                name.is_none_or(|name| names.contains(name))
            });
    }
    true
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_names_on_a_path_wake_it_and_a_path_is_followed_as_it_grows() {
        let root = tempfile::tempdir().unwrap();
        let inotify = inotify::init(CreateFlags::NONBLOCK).unwrap();
        let follow = || {
            let watches = watch(&inotify, root.path(), "/a/b").unwrap();
            let watches = watches.into_iter();
            let watches: HashMap<_, _> = watches
                .map(|(number, name)| (number, HashSet::from([name])))
                .collect();
            watches
        };
        let mut watches = follow();
        let steps = [
            ("mkdir", "other", false),
            ("mkdir", "a", true),
            ("mkdir", "a/other", false),
            ("mkdir", "a/b", true),
            ("rmdir", "a/other", false),
            ("rmdir", "a/b", true),
            ("rmdir", "a", true),
            ("mkdir", "a", true),
            ("mkdir", "a/b", true),
        ];
        for (what, name, expected) in steps {
            let path = root.path().join(name);
            match what {
                "mkdir" => fs::create_dir(path).unwrap(),
                _ => fs::remove_dir(path).unwrap(),
            }
            let taken = take_events(&inotify, &watches);
            assert_eq!(taken, expected, "{what} {name}");
            if taken {
                watches = follow();
            }
        }
    }
}
