//! Repeated events, which are counted instead of reported while the ring is filling.

use aya_ebpf::{bindings::BPF_NOEXIST, btf_maps::HashMap, macros::btf_map};
use portwatch_common::{RepeatKey, protocol::may_count};

use crate::{control, field::add, ring};

/// How often each was counted.
#[btf_map]
static REPEATS: HashMap<RepeatKey, u64, 4096> = HashMap::new();

/// The epoch in which repeats are to be counted; 0 for none, while the ring is below its high
/// watermark.
#[inline(always)]
pub fn epoch() -> u32 {
    let (epoch, high_watermark) = control::repeats();
    if epoch == 0 || !may_count(epoch, ring::filled(), high_watermark) {
        return 0;
    }
    epoch
}

/// The epoch in which what came and went is counted, however full the ring is; 0 for none.
#[inline(always)]
pub fn epoch_of_closed() -> u32 {
    control::repeats().0
}

/// Whether it is counted.
#[inline(always)]
pub fn is_started(key: &RepeatKey) -> bool {
    REPEATS.get_ptr_mut(key).is_some()
}

/// Counts it if that was started.
#[inline(always)]
pub fn is_counted(key: &RepeatKey) -> bool {
    let Some(count) = REPEATS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: the agent removes only keys of epochs that no run can have any more.
    unsafe { add(count, 1) };
    true
}

/// Whether it is counted, or can be from now on.
#[inline(always)]
pub fn has_room(key: &RepeatKey) -> bool {
    if !is_started(key) {
        start_counting(key);
    }
    is_started(key)
}

/// Counts it `times`, or begins to. False where there is no more room.
#[inline(always)]
pub fn count(key: &RepeatKey, times: u64) -> bool {
    if REPEATS.get_ptr_mut(key).is_none() {
        start_counting(key);
    }
    let Some(count) = REPEATS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: as in `is_counted`.
    unsafe { add(count, times) };
    true
}

/// Counts it from now on. Where there is no more room, each goes on being reported.
#[inline(always)]
pub fn start_counting(key: &RepeatKey) {
    if REPEATS.insert(key, 0_u64, BPF_NOEXIST.into()).is_ok() {
        control::count_repeat_key();
    }
}
