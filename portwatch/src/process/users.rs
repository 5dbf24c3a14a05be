//! User names, without a name service on the caller's thread.
//!
//! `/etc/passwd` is read directly. Ids that are not in it are resolved by getpwuid(3) on one
//! background thread of this process, since a name service (LDAP, sssd) can block for minutes; the
//! name is unknown until it answers.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::{Uid, User};

use crate::{model::Printable, util::Bounded};

/// Bytes of `/etc/passwd` that are read; ids in the rest are resolved by getpwuid(3).
const MAX_PASSWD: u64 = 1 << 20;

/// Bytes of a user name (`LOGIN_NAME_MAX`, limits.h(0p)).
pub(super) const MAX_NAME: usize = 128;

/// Cached ids, each with a name of at most `MAX_NAME` bytes.
const MAX_IDS: usize = 512;

/// Ids that wait for getpwuid(3); further ones are not resolved for now.
const MAX_QUEUE: usize = 64;

/// How often `/etc/passwd` is checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long an answer of getpwuid(3) is used.
const LIFETIME: Duration = Duration::from_secs(60);

/// From this age on, an answer that is in use is refreshed.
const REFRESH: Duration = Duration::from_secs(30);

/// User names by id.
#[derive(Debug)]
pub(super) struct Users {
    passwd: Passwd,
    resolver: Arc<Resolver>,
    /// How long the caller may be blocked in total.
    patience: Duration,
}

impl Users {
    /// Never blocks: a name that getpwuid(3) has not returned yet is None.
    pub(super) fn non_blocking() -> Self {
        Self::new("/etc/passwd".into(), Arc::clone(&SYSTEM), Duration::ZERO)
    }

    /// Waits for getpwuid(3), for at most `patience` over all calls.
    pub(super) fn patient(patience: Duration) -> Self {
        Self::new("/etc/passwd".into(), Arc::clone(&SYSTEM), patience)
    }

    fn new(passwd: PathBuf, resolver: Arc<Resolver>, patience: Duration) -> Self {
        Self {
            passwd: Passwd {
                path: passwd,
                stamp: None,
                checked: None,
                names: Bounded::new(MAX_IDS),
            },
            resolver,
            patience,
        }
    }

    /// The name of a user; None without one, and while it is not known yet.
    pub(super) fn name(&mut self, uid: u32) -> Option<Printable> {
        if let Some(name) = self.passwd.name(uid) {
            return Some(name);
        }
        let asked = Instant::now();
        let name = self.resolver.name(uid, self.patience);
        self.patience = self.patience.saturating_sub(asked.elapsed());
        name
    }
}

/// `/etc/passwd` (passwd(5)), read when an id is asked for first and when the file has changed.
#[derive(Debug)]
struct Passwd {
    path: PathBuf,
    stamp: Option<Stamp>,
    checked: Option<Instant>,
    /// None for ids that the file does not have.
    names: Bounded<u32, Option<Printable>>,
}

/// A version of the file: device, inode, size, and modification time in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Passwd {
    fn name(&mut self, uid: u32) -> Option<Printable> {
        if self.checked.is_none_or(|at| at.elapsed() >= CHECK_INTERVAL) {
            self.checked = Some(Instant::now());
            let stamp = fs::metadata(&self.path).ok().map(|file| {
                let modified = (file.mtime(), file.mtime_nsec());
                (file.dev(), file.ino(), file.size(), modified.0, modified.1)
            });
            if stamp != self.stamp {
                self.stamp = stamp;
                self.names = Bounded::new(MAX_IDS);
            }
        }
        if let Some(name) = self.names.get(&uid) {
            return name.clone();
        }
        let name = self.find(uid);
        self.names.put(uid, name.clone());
        name
    }

    fn find(&self, uid: u32) -> Option<Printable> {
        let file = File::open(&self.path).ok()?;
        BufReader::new(file.take(MAX_PASSWD))
            .split(b'\n')
            .map_while(Result::ok)
            .find_map(|line| name_in(&line, uid))
    }
}

/// The name in a line of passwd(5), if the line is of that user.
pub(super) fn name_in(line: &[u8], uid: u32) -> Option<Printable> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = fields.next()?;
    let id: u32 = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
    // Comments, and inclusions from NIS (nsswitch.conf(5), compat).
    let is_user = !matches!(name.first(), None | Some(b'#' | b'+' | b'-'));
    (is_user && id == uid).then(|| Printable::limited(name, MAX_NAME))
}

/// The resolver of this process. Its thread is started by the first id that it gets and never ends.
static SYSTEM: LazyLock<Arc<Resolver>> = LazyLock::new(|| {
    Resolver::new(|uid| {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten()?;
        Some(Printable::limited(user.name.as_bytes(), MAX_NAME))
    })
});

/// Resolves ids on a thread of its own.
#[derive(Debug)]
struct Resolver {
    resolve: fn(u32) -> Option<Printable>,
    state: Mutex<State>,
    queued: Condvar,
    answered: Condvar,
}

#[derive(Debug)]
struct State {
    answers: Bounded<u32, Answer>,
    /// Includes the id that is being resolved, as the first one.
    queue: VecDeque<u32>,
    is_started: bool,
}

#[derive(Clone, Debug)]
struct Answer {
    name: Option<Printable>,
    at: Instant,
}

impl Resolver {
    fn new(resolve: fn(u32) -> Option<Printable>) -> Arc<Self> {
        Arc::new(Self {
            resolve,
            state: Mutex::new(State {
                answers: Bounded::new(MAX_IDS),
                queue: VecDeque::new(),
                is_started: false,
            }),
            queued: Condvar::new(),
            answered: Condvar::new(),
        })
    }

    /// The name of a user as far as it is known after `patience`.
    fn name(self: &Arc<Self>, uid: u32, patience: Duration) -> Option<Printable> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let answer = state.answers.get(&uid).cloned();
            let age = answer.as_ref().map(|answer| answer.at.elapsed());
            if age.is_none_or(|age| age >= REFRESH) {
                self.request(&mut state, uid);
            }
            if age.is_some_and(|age| age < LIFETIME) {
                return answer?.name;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !state.queue.contains(&uid) {
                return None;
            }
            let waited = self.answered.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn request(self: &Arc<Self>, state: &mut State, uid: u32) {
        if state.queue.contains(&uid) || state.queue.len() >= MAX_QUEUE {
            return;
        }
        if !state.is_started {
            let resolver = Arc::clone(self);
            let thread = thread::Builder::new().name("users".into());
            // Without a thread, the next request tries again.
            if thread.spawn(move || resolver.run()).is_err() {
                return;
            }
            state.is_started = true;
        }
        state.queue.push_back(uid);
        self.queued.notify_one();
    }

    fn run(&self) -> ! {
        loop {
            let uid = self.next();
            let name = (self.resolve)(uid);
            let mut state = self.lock();
            let at = Instant::now();
            state.answers.put(uid, Answer { name, at });
            state.queue.pop_front();
            self.answered.notify_all();
        }
    }

    /// Waits for the next id to resolve; it stays in the queue.
    fn next(&self) -> u32 {
        let mut state = self.lock();
        loop {
            if let Some(uid) = state.queue.front() {
                return *uid;
            }
            let waited = self.queued.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Users {
    /// Reads another file, and resolves by `resolve`.
    pub(super) fn of(passwd: PathBuf, resolve: fn(u32) -> Option<Printable>) -> Self {
        Self::new(passwd, Resolver::new(resolve), Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    fn no_name(_: u32) -> Option<Printable> {
        None
    }

    #[test]
    fn lines_of_passwd_name_their_user_alone() {
        let cases: [(&[u8], Option<&str>); 9] = [
            (b"web:x:1000:1000:Web,,,:/home/web:/bin/sh", Some("web")),
            (b"web::1000:", Some("web")),
            (b"gr\xfc:x:1000:1::/:", Some("gr\\xfc")),
            (b"a\x1bb:x:1000:1::/:", Some("a\\u{1b}b")),
            (b"web:x:1001:1000::/:", None),
            (b"+web:x:1000:1000::/:", None),
            (b"#web:x:1000:1000::/:", None),
            (b"web:x:x:1000::/:", None),
            (b"", None),
        ];
        for (line, expected) in cases {
            let found = name_in(line, 1000);
            assert_eq!(found.as_deref(), expected, "{}", line.escape_ascii());
        }
        let long = [&[b'a'; 5000][..], b":x:7:7::/:"].concat();
        assert_eq!(name_in(&long, 7).unwrap().matches('a').count(), MAX_NAME);
    }

    #[test]
    fn a_slow_name_service_does_not_block_and_answers_later() {
        static IS_ANSWERING: AtomicBool = AtomicBool::new(false);
        #[expect(clippy::unnecessary_wraps, reason = "the signature of a resolver")]
        fn slow(uid: u32) -> Option<Printable> {
            while !IS_ANSWERING.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
            Some(Printable::limited(
                format!("user{uid}").as_bytes(),
                MAX_NAME,
            ))
        }
        let mut users = Users::of("/nonexistent".into(), slow);
        // While it does not answer, a caller that waited for it would wait for ever.
        for uid in 0..10_000 {
            assert_eq!(users.name(uid), None);
        }
        assert_eq!(users.resolver.lock().queue.len(), MAX_QUEUE);
        IS_ANSWERING.store(true, Ordering::Release);
        let deadline = Instant::now() + Duration::from_secs(10);
        while users.name(3).as_deref() != Some("user3") {
            assert!(Instant::now() < deadline, "no answer");
            thread::sleep(Duration::from_millis(1));
        }
        users.patience = Duration::from_secs(10);
        assert_eq!(users.name(9_999).as_deref(), Some("user9999"));
    }

    #[test]
    fn a_hung_name_service_blocks_a_patient_caller_once() {
        fn hung(_: u32) -> Option<Printable> {
            thread::sleep(Duration::from_secs(3600));
            None
        }
        let mut users = Users::of("/nonexistent".into(), hung);
        users.patience = Duration::from_millis(200);
        let begin = Instant::now();
        for uid in 0..100 {
            assert_eq!(users.name(uid), None);
        }
        let elapsed = begin.elapsed();
        assert!(elapsed >= Duration::from_millis(200), "{elapsed:?}");
        assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
    }

    #[test]
    fn a_changed_passwd_is_seen_within_about_a_second() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwd");
        let first = directory.path().join("first");
        let second = directory.path().join("second");
        fs::write(&first, "web:x:1000:1000::/:\nold:x:1001:1001::/:\n").unwrap();
        fs::write(&second, "db:x:1000:1000::/:\nold:x:1001:1001::/:\n").unwrap();
        symlink(&first, &path).unwrap();
        let mut users = Users::of(path.clone(), no_name);
        assert_eq!(users.name(1000).as_deref(), Some("web"));
        assert_eq!(users.name(7), None);
        fs::remove_file(&path).unwrap();
        symlink(&second, &path).unwrap();
        let begin = Instant::now();
        while users.name(1000).as_deref() != Some("db") {
            assert!(begin.elapsed() < CHECK_INTERVAL * 2, "not seen");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(users.name(1001).as_deref(), Some("old"));
        fs::write(&second, "new:x:7:7::/:\n").unwrap();
        thread::sleep(CHECK_INTERVAL);
        assert_eq!(
            [7, 1000].map(|uid| users.name(uid).is_some()),
            [true, false]
        );
    }
}
