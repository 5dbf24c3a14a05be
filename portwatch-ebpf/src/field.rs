//! Access to the contexts and the maps' values.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// Reads one field through a pointer, on its own: the verifier rejects two reads of a context that
/// were merged into one load, and a value in a map can change meanwhile.
macro_rules! field {
    ($from:expr, $($field:tt)+) => {
        // SAFETY: contexts and maps' values are valid for the whole run; the verifier checks that
        // the pointer is one of these and the offset within it.
        unsafe { core::ptr::read_volatile(&raw const (*$from).$($field)+) }
    };
}

/// Writes word by word: at once, it would be a call of memmove.
///
/// # Safety
///
/// `to` points at that many words that may be written, aligned.
#[inline(always)]
pub unsafe fn put<const WORDS: usize>(to: *mut u32, words: [u32; WORDS]) {
    for (index, word) in words.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { to.add(index).write_volatile(word) };
    }
}

/// Adds to a counter, wrapping. Another run may preempt this one on the same CPU, or count the same
/// on another.
///
/// # Safety
///
/// `counter` points into a map's value, valid for the whole run.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: the caller's promise; the addition is atomic.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}
