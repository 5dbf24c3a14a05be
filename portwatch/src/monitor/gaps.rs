//! Gaps in what the agent saw: it was stopped (SIGSTOP, the freezer, a debugger), or the host was
//! suspended. The BPF programs go on meanwhile, but nobody attaches them again should they be
//! detached, and what does not fit into the ring is lost.
#![forbid(unsafe_code)]

use std::time::Duration;

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

/// How late a timer of a running agent is at the most.
const LATE: Duration = Duration::from_secs(1);

/// By how much the two clocks drift apart between two readings, at the most.
const JITTER: Duration = Duration::from_millis(100);

/// Notices gaps.
pub(super) struct Gaps {
    /// For how long the host has been suspended since it was booted.
    suspended: Duration,
}

impl Gaps {
    pub(super) fn new() -> Self {
        Self {
            suspended: suspended(),
        }
    }

    /// Whether there was a gap since the last call, by a timer that was `late` by that much.
    pub(super) fn notice(&mut self, late: Duration) -> bool {
        self.is_gap(late, suspended())
    }

    fn is_gap(&mut self, late: Duration, suspended: Duration) -> bool {
        let before = std::mem::replace(&mut self.suspended, suspended);
        late >= LATE || suspended.saturating_sub(before) >= JITTER
    }
}

/// `CLOCK_BOOTTIME` minus `CLOCK_MONOTONIC`, which stands still while the host is suspended.
fn suspended() -> Duration {
    let read = |id| clock_gettime(id).unwrap_or(TimeSpec::new(0, 0));
    let monotonic = Duration::from(read(ClockId::CLOCK_MONOTONIC));
    Duration::from(read(ClockId::CLOCK_BOOTTIME)).saturating_sub(monotonic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_timers_and_suspended_hosts_are_gaps() {
        let s = Duration::from_secs;
        let ms = Duration::from_millis;
        // (how late, suspended before, suspended now, whether that is a gap)
        let cases = [
            (ms(0), s(0), s(0), false),
            (ms(300), s(7), s(7) + ms(1), false),
            (s(1), s(0), s(0), true),
            (ms(0), s(0), s(1), true),
            (ms(0), s(3600), s(3600) + ms(100), true),
            // Read at different moments.
            (ms(0), s(7), ms(6999), false),
        ];
        for (late, before, now, expected) in cases {
            let mut gaps = Gaps { suspended: before };
            assert_eq!(
                gaps.is_gap(late, now),
                expected,
                "{late:?} {before:?} {now:?}"
            );
            assert!(!gaps.is_gap(ms(0), now), "reported once");
        }
        assert!(!Gaps::new().notice(ms(0)));
    }
}
