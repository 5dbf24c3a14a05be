//! The ring buffer and how the agent is woken.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::RingBuf,
    helpers::generated::bpf_ringbuf_query,
    macros::btf_map,
    maps::ring_buf::RingBufEntry,
};
use portwatch_common::{ExecInfo, Report, SessionEnd, protocol::must_wake};

use crate::control::{count_lost, count_submitted, polling};

/// Records on their way to the agent, which sets the size.
#[btf_map]
static RING: RingBuf<Report, 262_144> = RingBuf::new();

/// Reserves an exec info. One that does not fit is not counted: its process is identified by what
/// /proc shows.
#[inline(always)]
pub fn reserve_exec_info() -> Option<RingBufEntry<ExecInfo>> {
    RING.reserve_untyped(0)
}

/// Reserves a report; None, and counted as lost, when the ring is full.
#[inline(always)]
pub fn reserve_report() -> Option<RingBufEntry<Report>> {
    let entry = RING.reserve(0);
    if entry.is_none() {
        count_lost();
    }
    entry
}

/// Reserves the end of a connection; None, and nothing is counted, when the ring is full.
#[inline(always)]
pub fn reserve_session_end() -> Option<RingBufEntry<SessionEnd>> {
    RING.reserve_untyped(0)
}

/// Bytes in the ring that the agent has not taken yet.
#[inline(always)]
pub fn filled() -> u64 {
    let ring = ptr::from_ref(&RING).cast_mut().cast();
    // SAFETY: the map pointer is patched by the loader.
    unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()) }
}

/// Hands a report over. It is counted while it keeps the ring from being empty, so that once the ring
/// is empty, the agent has taken as many as were counted.
#[inline(always)]
pub fn submit_report(entry: RingBufEntry<Report>) {
    count_submitted();
    submit(entry);
}

/// As [`submit_report`]. Without `wakes` the agent reads it when it reads the next record.
#[inline(always)]
pub fn submit_session_end(entry: RingBufEntry<SessionEnd>, wakes: bool) {
    count_submitted();
    if wakes {
        submit(entry);
    } else {
        entry.submit(BPF_RB_NO_WAKEUP.into());
    }
}

/// Hands a record over, and wakes the agent unless it polls.
#[inline(always)]
pub fn submit<T>(entry: RingBufEntry<T>) {
    if must_wake(polling()) {
        entry.submit(0);
        return;
    }
    entry.submit(BPF_RB_NO_WAKEUP.into());
    // The agent may have polled for the last time before the record was there. Both sides have a
    // full barrier between their write and their read, so one of them sees the other's.
    if must_wake(polling())
        && let Some(nudge) = RING.reserve_untyped::<u64>(0)
    {
        nudge.discard(BPF_RB_FORCE_WAKEUP.into());
    }
}
