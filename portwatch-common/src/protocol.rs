//! The decisions of the two protocols between BPF programs and agent: when the agent is woken, and
//! whether an event is reported or counted. Both sides and the model of them (`tests/protocol.rs`)
//! use these.

/// What is open for so long lasts, and is reported by itself: nanoseconds.
pub const LASTING_NS: u64 = 100_000_000;

/// Whether repeated events are counted: in an epoch, and with so many bytes in the ring.
#[inline(always)]
#[must_use]
pub const fn may_count(epoch: u32, filled: u64, high_watermark: u64) -> bool {
    epoch != 0 && filled >= high_watermark
}

/// Whether no run of a BPF program can count in the epoch of a key any more. To be asked when a run
/// that began before `current` did has ended.
#[inline(always)]
#[must_use]
pub const fn is_over(epoch: u32, current: u32) -> bool {
    epoch < current
}

/// Whether a program that handed over a record without waking the agent has to wake it after all.
/// `polling` as read after the record was there.
#[inline(always)]
#[must_use]
pub const fn must_wake(polling: u32) -> bool {
    polling == 0
}

/// Whether a socket that took its port at `since_ns` lasts, by the same clock.
#[inline(always)]
#[must_use]
pub const fn has_lasted(since_ns: u64, now_ns: u64) -> bool {
    now_ns.wrapping_sub(since_ns) >= LASTING_NS && now_ns >= since_ns
}

/// Whether an event of a socket that closes is reported by itself, and not counted: the socket
/// lasted, or the agent has reported an event of it (it has taken out what the mark says is in the
/// table). `since_ns` is of the event in the table; None where the agent has taken it.
#[inline(always)]
#[must_use]
pub const fn is_reported_at_close(since_ns: Option<u64>, now_ns: u64) -> bool {
    match since_ns {
        Some(since_ns) => has_lasted(since_ns, now_ns),
        None => true,
    }
}
