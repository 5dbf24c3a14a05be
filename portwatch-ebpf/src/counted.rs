//! The table of counted sockets: the events by which sockets take ports and that were not reported,
//! as they would have been. They are not counted yet either. Whoever removes an entry reports or
//! counts its event, and removing succeeds once:
//!
//! - The agent removes what is older than `LASTING_NS`, and reports it.
//! - A close counts what is younger, and puts what lasted into the ring, before itself.
//! - An event of the same socket that is reported puts what came before it into the ring.

#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "passed by value they are copied to the stack, which has no room for a report"
)]

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::HashMap,
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use portwatch_common::{
    CountedKey, MAX_COUNTED_SOCKETS, RepeatKey, Report, connection, counted, kind, known,
    protocol::is_reported_at_close,
};

use crate::{
    control::count_counted_socket,
    repeats,
    ring::{reserve_report, submit_report},
};

/// Without memory of its own while nothing is counted. Not for tracepoints: before Linux 6.1 the kernel
/// warns of such a map there (`check_map_prog_compatibility` in kernel/bpf/verifier.c).
#[btf_map]
static COUNTED_SOCKETS: HashMap<
    CountedKey,
    Report,
    { MAX_COUNTED_SOCKETS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// What a new entry is before its event is written into it: `time_ns`, which is written last, is 0.
/// Not on the stack, which has no room for it.
#[unsafe(no_mangle)]
static EMPTY_REPORT: Report = Report {
    time_ns: 0,
    cookie: 0,
    netns_cookie: 0,
    cgroup_id: 0,
    start_ns: 0,
    tgid: 0,
    tid: 0,
    uid: 0,
    gid: 0,
    local_address: [0; 16],
    remote_address: [0; 16],
    netns_inode: 0,
    connection: connection::NONE,
    reserved: [0; 3],
    local_port: 0,
    remote_port: 0,
    kind: 0,
    family: 0,
    protocol: 0,
    known: 0,
    comm: [0; 16],
};

/// Where to write the event of a socket, to keep it for later; None where there is no room.
#[inline(always)]
pub fn entry_for(cookie: u64, kind: u8) -> Option<NonNull<Report>> {
    let key = key(cookie, kind);
    if !add(&key) {
        // It connects, or is bound, once more.
        portwatch_release_event(cookie, kind.into());
        add(&key);
    }
    let entry = COUNTED_SOCKETS.get_ptr_mut(&key).and_then(NonNull::new);
    count_counted_socket(entry.is_some());
    entry
}

#[inline(always)]
fn add(key: &CountedKey) -> bool {
    COUNTED_SOCKETS
        .insert(key, &EMPTY_REPORT, BPF_NOEXIST.into())
        .is_ok()
}

/// Whether the agent has reported an event of the socket, whose mark has these bits.
#[inline(always)]
pub fn is_reported(cookie: u64, bits: u16) -> bool {
    portwatch_is_reported(cookie, bits.into()) != 0
}

/// As [`is_reported`]. A function of its own for the verifier too, which then checks it once and not
/// once for each path that leads here; as are all of these.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_is_reported(cookie: u64, bits: u32) -> u32 {
    let is_taken = |kind: u8| {
        bits & u32::from(counted::bit(kind)) != 0
            && COUNTED_SOCKETS.get_ptr(&key(cookie, kind)).is_none()
    };
    (is_taken(kind::BIND) || is_taken(kind::LISTEN) || is_taken(kind::CONNECT)).into()
}

/// Puts what is kept of the socket into the ring.
#[inline(always)]
pub fn release_events(cookie: u64, bits: u16) {
    portwatch_release_events(cookie, bits.into());
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_release_events(cookie: u64, bits: u32) -> u32 {
    let release = |kind: u8| {
        if bits & u32::from(counted::bit(kind)) != 0 {
            portwatch_release_event(cookie, kind.into());
        }
    };
    release(kind::BIND);
    release(kind::LISTEN);
    release(kind::CONNECT);
    0
}

/// Puts one event into the ring, unless the agent takes it meanwhile.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_release_event(cookie: u64, kind: u32) -> u32 {
    let key = key(cookie, kind as u8);
    let Some(kept) = COUNTED_SOCKETS.get_ptr(&key) else {
        return 0;
    };
    let Some(mut entry) = reserve_report() else {
        // Counted as lost.
        let _ = COUNTED_SOCKETS.remove(&key);
        return 0;
    };
    copy(kept, entry.as_mut_ptr());
    // It was not removed before, so it is what was copied: nothing else adds one for this key while a
    // program runs for its socket.
    if COUNTED_SOCKETS.remove(&key).is_ok() {
        submit_report(entry);
        return 1;
    }
    // With a wake-up, as any: the agent is not woken for a record behind one that it has not read.
    entry.discard(0);
    0
}

/// Counts what is kept of a socket that closes, or reports it if it lasts. Returns whether the close
/// may be counted too.
#[inline(always)]
pub fn settle(cookie: u64, bits: u16) -> bool {
    portwatch_settle(cookie, bits.into()) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_settle(cookie: u64, bits: u32) -> u32 {
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let lasts = |kind: u8| {
        if bits & u32::from(counted::bit(kind)) == 0 {
            return false;
        }
        match COUNTED_SOCKETS.get_ptr(&key(cookie, kind)) {
            Some(kept) => is_reported_at_close(Some(field!(kept, time_ns)), now),
            None => is_reported_at_close(None, now),
        }
    };
    if lasts(kind::BIND) || lasts(kind::LISTEN) || lasts(kind::CONNECT) {
        portwatch_release_events(cookie, bits);
        return 0;
    }
    let count = |kind: u8| {
        bits & u32::from(counted::bit(kind)) == 0 || portwatch_count(cookie, kind.into()) != 0
    };
    // All of them.
    (count(kind::BIND) & count(kind::LISTEN) & count(kind::CONNECT)).into()
}

/// Counts one event. Returns whether the close of its socket may be counted: false where the agent
/// has taken it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_count(cookie: u64, kind: u32) -> u32 {
    let key = key(cookie, kind as u8);
    let epoch = repeats::epoch_of_closed();
    let Some(kept) = COUNTED_SOCKETS.get_ptr(&key) else {
        return 0;
    };
    let repeat = repeat_of(kept, epoch);
    // First counted, then removed: where there is no room to count, it is still there to report.
    if epoch == 0 || !repeats::count(&repeat, 1) {
        portwatch_release_event(cookie, kind);
        return 1;
    }
    if COUNTED_SOCKETS.remove(&key).is_err() {
        repeats::count(&repeat, u64::MAX);
        return 0;
    }
    1
}

/// What an event is counted as. No accept is kept, so what distinguishes these is not set.
#[inline(always)]
fn repeat_of(kept: *const Report, epoch: u32) -> RepeatKey {
    RepeatKey {
        cookie: 0,
        netns_cookie: field!(kept, netns_cookie),
        local_address: [word(kept, 0), word(kept, 1), word(kept, 2), word(kept, 3)],
        remote_address: [0; 4],
        binder: field!(kept, tgid),
        epoch,
        local_port: field!(kept, local_port),
        kind: field!(kept, kind),
        family: field!(kept, family),
        protocol: field!(kept, protocol),
        known: field!(kept, known) & (known::NETNS | known::KERNEL),
        session: 0,
    }
}

/// A word of the local address.
#[inline(always)]
fn word(kept: *const Report, index: usize) -> u32 {
    // SAFETY: within the field of a map's value, aligned, and valid for the whole run.
    unsafe {
        let address: *const u32 = (&raw const (*kept).local_address).cast();
        address.add(index).read_volatile()
    }
}

#[inline(always)]
fn copy(from: *const Report, to: *mut Report) {
    const WORDS: usize = size_of::<Report>() / 8;
    let (from, to): (*const u64, *mut u64) = (from.cast(), to.cast());
    for index in 0..WORDS {
        // SAFETY: both point at a `Report`, 8-byte aligned, valid for the whole run.
        unsafe {
            to.add(index)
                .write_volatile(from.add(index).read_volatile())
        };
    }
}

#[inline(always)]
const fn key(cookie: u64, kind: u8) -> CountedKey {
    CountedKey {
        cookie,
        kind: kind as u32,
        reserved: 0,
    }
}
