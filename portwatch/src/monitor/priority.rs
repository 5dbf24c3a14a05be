//! The priority of the thread that reads the ring. It runs before everything else on the host, within a
//! budget: what takes more than that is a flood, which must not starve the host.

use std::{io, time::Duration};

use nix::sys::resource::{Resource, setrlimit};
use tokio::time::Instant;

use crate::linux::clock::thread_time;

/// How much of a core the thread may take and keep its priority, in one of so many.
const SHARE: u32 = 20;

/// Over which time, while it has its priority.
const WINDOW: Duration = Duration::from_millis(100);

/// For how long it must have taken less than that to get it back.
const CALM: Duration = Duration::from_secs(1);

/// The lowest real-time priority (sched(7)).
const REAL_TIME: libc::c_int = 1;

/// Where real-time priority is not to be had.
const NICE: libc::c_int = -10;

/// How the thread is put before others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    RealTime,
    Nice,
    None,
}

/// The priority of the calling thread.
pub(super) struct Priority {
    kind: Kind,
    /// Whether a resource limit allows to raise it again.
    is_within_limit: bool,
    is_raised: bool,
    /// When the window began, and the processor time of the thread then.
    began: Instant,
    used: Duration,
}

impl Priority {
    /// Raises it, if that is `wanted`. Also what the operator should know. To be called while the privileges for
    /// it are there; it can be raised again without.
    pub(super) fn raise(wanted: bool) -> (Self, Option<String>) {
        let (kind, is_within_limit, message) = match wanted {
            true => first(),
            false => (Kind::None, false, None),
        };
        let priority = Self {
            kind,
            is_within_limit,
            is_raised: kind != Kind::None,
            began: Instant::now(),
            used: thread_time(),
        };
        (priority, message)
    }

    /// Whether it takes `CAP_SYS_NICE` to raise it again.
    pub(super) const fn needs_capability(&self) -> bool {
        !self.is_within_limit && !matches!(self.kind, Kind::None)
    }

    /// When [`adapt`](Self::adapt) is to be called at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.kind != Kind::None && !self.is_raised).then(|| self.began + CALM)
    }

    /// To be called in each turn of the loop that reads the ring.
    pub(super) fn adapt(&mut self) {
        if self.kind == Kind::None {
            return;
        }
        let window = match self.is_raised {
            true => WINDOW,
            false => CALM,
        };
        let now = Instant::now();
        let elapsed = now - self.began;
        if elapsed < window {
            return;
        }
        let used = thread_time();
        let is_within = used.saturating_sub(self.used) * SHARE <= elapsed;
        (self.began, self.used) = (now, used);
        if is_within != self.is_raised && set(self.kind, is_within).is_ok() {
            self.is_raised = is_within;
        }
    }
}

/// The best that is allowed, whether it can be raised again within a resource limit, and what to say of it.
fn first() -> (Kind, bool, Option<String>) {
    let limit = REAL_TIME as u64;
    let is_within_limit = setrlimit(Resource::RLIMIT_RTPRIO, limit, limit).is_ok();
    let Err(error) = set(Kind::RealTime, true) else {
        return (Kind::RealTime, is_within_limit, None);
    };
    let denied = format!("no real-time priority ({error})");
    // 20 minus the lowest nice value (getrlimit(2)).
    let limit = (20 - NICE) as u64;
    let is_within_limit = setrlimit(Resource::RLIMIT_NICE, limit, limit).is_ok();
    match set(Kind::Nice, true) {
        Ok(()) => (
            Kind::Nice,
            is_within_limit,
            Some(format!(
                "{denied}: nice {NICE} instead; alerts can be late on a busy host"
            )),
        ),
        Err(error) => (
            Kind::None,
            false,
            Some(format!(
                "{denied}, and no nice value ({error}): alerts can be late on a busy host"
            )),
        ),
    }
}

/// Gives the calling thread the priority, or takes it back. Threads that it starts never have it.
fn set(kind: Kind, raised: bool) -> io::Result<()> {
    let (policy, priority) = match (kind, raised) {
        (Kind::RealTime, true) => (libc::SCHED_RR, REAL_TIME),
        _ => (libc::SCHED_OTHER, 0),
    };
    // SAFETY: the kernel's `struct sched_param` is this one int (include/uapi/linux/sched/types.h, Linux 6.18).
    // Not by the function of libc, since musl's does nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy | libc::SCHED_RESET_ON_FORK,
            &raw const priority,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if kind == Kind::Nice {
        let nice = if raised { NICE } else { 0 };
        // SAFETY: the call has no pointers; who 0 is the calling thread (setpriority(2)).
        if unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
