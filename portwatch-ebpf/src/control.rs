//! The page that the agent has mapped too, and the statistics that it reads.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use portwatch_common::{Control, Stats};

use crate::field::add;

#[btf_map]
static CONTROL: Array<Control, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static STATS: PerCpuArray<Stats, 1> = PerCpuArray::new();

/// [`Control::polling`].
#[inline(always)]
pub fn polling() -> u32 {
    match CONTROL.get_ptr(0) {
        Some(control) => field!(control, polling),
        None => 0,
    }
}

/// The epoch in which repeats are counted, 0 for none, and the bytes in the ring from which on they
/// are.
#[inline(always)]
pub fn repeats() -> (u32, u64) {
    match CONTROL.get_ptr(0) {
        Some(control) => (field!(control, epoch), field!(control, high_watermark)),
        None => (0, 0),
    }
}

/// Whether the agent is to be woken for the end of a connection: it reports each, or nothing is
/// counted should the ring fill.
#[inline(always)]
pub fn wakes_for_sessions() -> bool {
    match CONTROL.get_ptr(0) {
        Some(control) => field!(control, sessions) != 0 || field!(control, epoch) == 0,
        None => true,
    }
}

/// Whether there may be a marked socket whose close is to be reported.
#[inline(always)]
pub fn has_marked_sockets() -> bool {
    match CONTROL.get_ptr(0) {
        Some(control) => field!(control, marked_sockets) != 0,
        None => true,
    }
}

/// Counts a marked socket, unless the cookie in the mark that it had is its own: it is counted then.
#[inline(always)]
pub fn count_marked_socket(cookie: u64, before: u64) {
    portwatch_count_mark(cookie, before);
}

/// As [`count_marked_socket`]. A function of its own for the verifier too, which then checks it once
/// and not once for each path that leads here.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_count_mark(cookie: u64, before: u64) -> u32 {
    if cookie == before {
        return 0;
    }
    add_marked_sockets(1);
    1
}

/// Uncounts a marked socket.
#[inline(always)]
pub fn uncount_marked_socket() {
    add_marked_sockets(u64::MAX);
}

#[inline(always)]
fn add_marked_sockets(value: u64) {
    if let Some(control) = CONTROL.get_ptr_mut(0) {
        // SAFETY: the map's only value, valid for the whole run.
        unsafe { add(&raw mut (*control).marked_sockets, value) };
    }
    if let Some(stats) = STATS.get_ptr_mut(0) {
        // SAFETY: this CPU's slot, valid for the whole run.
        unsafe { add(&raw mut (*stats).marked_sockets, value) };
    }
}

/// Counts a report that is about to be put into the ring.
#[inline(always)]
pub fn count_submitted() {
    if let Some(stats) = STATS.get_ptr_mut(0) {
        // SAFETY: this CPU's slot, valid for the whole run.
        unsafe { add(&raw mut (*stats).submitted, 1) };
    }
}

/// Counts a report that found the ring full.
#[inline(always)]
pub fn count_lost() {
    if let Some(stats) = STATS.get_ptr_mut(0) {
        // SAFETY: this CPU's slot, valid for the whole run.
        unsafe { add(&raw mut (*stats).lost, 1) };
    }
}

/// Counts an entry of the table of counted sockets; one for which there was no room as such.
#[inline(always)]
pub fn count_counted_socket(is_added: bool) {
    if let Some(stats) = STATS.get_ptr_mut(0) {
        // SAFETY: this CPU's slot, valid for the whole run.
        unsafe {
            if is_added {
                add(&raw mut (*stats).counted_sockets, 1);
            } else {
                add(&raw mut (*stats).overflowed, 1);
            }
        }
    }
}

/// Counts a repeat key that begins to be counted.
#[inline(always)]
pub fn count_repeat_key() {
    if let Some(stats) = STATS.get_ptr_mut(0) {
        // SAFETY: this CPU's slot, valid for the whole run.
        unsafe { add(&raw mut (*stats).repeats, 1) };
    }
}
