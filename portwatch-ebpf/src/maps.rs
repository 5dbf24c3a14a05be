//! Maps and read-only globals; their names are in `portwatch_common::names`.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{self, NonNull},
};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_RB_AVAIL_DATA,
        BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_ringbuf_query, bpf_sk_storage_get},
    macros::btf_map,
    maps::ring_buf::RingBufEntry,
};
use portwatch_common::{
    BANKS, Control, Image, Layout, Occupant, REFUSAL_SLOTS, REFUSALS, Refusal, Repeat, Report,
    SYSTEM_PORTS, Tally, watch_bit,
};

/// Reports on their way to the agent, which sets the size.
#[btf_map]
static RING: RingBuf<Report, 262_144> = RingBuf::new();

/// What the agent says meanwhile.
#[btf_map]
static CONTROL: Array<Control, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// What became of the reports.
#[btf_map]
static TALLY: PerCpuArray<Tally, 1> = PerCpuArray::new();

/// What repeats itself while the ring is filling, and how often it did.
#[btf_map]
static REPEATS: HashMap<Repeat, u64, 4096> = HashMap::new();

/// Which (port, protocol) is watched: `watch_bit`s by port.
#[btf_map]
static WATCHED: Array<u32, { SYSTEM_PORTS as usize }> = Array::new();

/// Which bank of refusals holds.
#[btf_map]
static REFUSAL_BANK: Array<u32, 1> = Array::new();

/// The refusals that a port has.
#[btf_map]
static REFUSAL_PORTS: Array<u64, { REFUSAL_SLOTS as usize }> = Array::new();

/// The refusals.
#[btf_map]
static REFUSAL_RULES: Array<Refusal, { (BANKS * REFUSALS) as usize }> = Array::new();

/// The bank of the refusals that hold, from 1 on; 0 for none.
#[inline(always)]
pub fn refusal_bank() -> u32 {
    match REFUSAL_BANK.get(0) {
        Some(bank) if *bank <= BANKS => *bank,
        _ => 0,
    }
}

/// The refusals of that slot, as bits.
#[inline(always)]
pub fn refusals_of(slot: u32) -> u64 {
    REFUSAL_PORTS.get(slot).copied().unwrap_or(0)
}

/// One refusal of that bank.
#[inline(always)]
pub fn refusal(bank: u32, index: u32) -> Option<&'static Refusal> {
    REFUSAL_RULES.get((bank - 1) * REFUSALS + index)
}

/// The images that the agent has been told of, by process id.
#[btf_map]
static TOLD: LruHashMap<u32, Told, TOLD_PROCESSES> = LruHashMap::new();

/// Processes whose images count as told. A power of two; the agent keeps twice as many.
const TOLD_PROCESSES: usize = 1024;

/// What tells one image of a process from the next: when it started, and where its arguments are,
/// which is another place after execve(2).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Told {
    pub start_ns: u64,
    pub args: u64,
}

/// Whether the agent knows this image of the process.
#[inline(always)]
pub fn is_told(tgid: u32, image: Told) -> bool {
    // SAFETY: another CPU can write the value meanwhile; the worst is an image that is told twice.
    unsafe { TOLD.get(tgid) }.is_some_and(|told| *told == image)
}

/// Notes that the agent knows this image of the process.
#[inline(always)]
pub fn told(tgid: u32, image: Told) {
    // Without memory it is told once more.
    let _ = TOLD.insert(tgid, image, 0);
}

/// What a socket on a watched port carries with it.
#[btf_map]
static OCCUPANTS: Occupants = Occupants::new();

#[unsafe(no_mangle)]
static SOCK_OPS_TASK: u8 = 1;

#[unsafe(no_mangle)]
static SOCK_OPS_NETNS: u8 = 1;

#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::UNKNOWN;

/// One field of the running kernel's layout.
macro_rules! layout {
    ($field:ident) => {
        // SAFETY: as in `global`.
        u64::from(unsafe { core::ptr::read_volatile(&raw const $crate::maps::LAYOUT.$field) })
    };
}
pub(crate) use layout;

/// Reads a global that the agent sets before loading; the verifier drops the branch it rules out.
macro_rules! global {
    ($name:ident) => {
        // SAFETY: the global lives in .rodata for as long as the program is loaded; the volatile
        // read only keeps the compiler from folding in the value that stands in this source.
        unsafe { core::ptr::read_volatile(&raw const $name) != 0 }
    };
}

#[inline(always)]
pub fn sock_ops_sees_task() -> bool {
    global!(SOCK_OPS_TASK)
}

#[inline(always)]
pub fn sock_ops_sees_netns() -> bool {
    global!(SOCK_OPS_NETNS)
}

#[inline(always)]
pub fn is_watched(port: u32, protocol: u8) -> bool {
    // Spares nearly every socket on the host the map lookup.
    if port >= SYSTEM_PORTS {
        return false;
    }
    match WATCHED.get(port) {
        Some(bits) => bits & watch_bit(protocol) != 0,
        None => false,
    }
}

/// Room for one image in the ring. One that does not fit is not counted: its process is told by
/// what /proc shows.
#[inline(always)]
pub fn reserve_image() -> Option<RingBufEntry<Image>> {
    RING.reserve_untyped(0)
}

/// Room for one report in the ring, or None (counted) when it is full.
#[inline(always)]
pub fn reserve() -> Option<RingBufEntry<Report>> {
    let entry = RING.reserve(0);
    if entry.is_none()
        && let Some(tally) = TALLY.get_ptr_mut(0)
    {
        // SAFETY: this CPU's slot, valid for the whole run.
        unsafe { add(&raw mut (*tally).lost) };
    }
    entry
}

/// Adds one. Another run may preempt this one on the same CPU, or count the same on another.
///
/// # Safety
///
/// `counter` points into a map's value, valid for the whole run.
#[inline(always)]
unsafe fn add(counter: *mut u64) {
    // SAFETY: the caller's promise; the increment is atomic.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
}

/// The epoch in which repeats are to be counted, 0 for none: that is so while the ring is filling.
#[inline(always)]
pub fn epoch_under_pressure() -> u32 {
    let Some(control) = CONTROL.get_ptr(0) else {
        return 0;
    };
    // SAFETY: the map's only value, which the agent writes meanwhile: hence volatile.
    let (epoch, pressure) = unsafe {
        (
            (&raw const (*control).epoch).read_volatile(),
            (&raw const (*control).pressure).read_volatile(),
        )
    };
    if epoch == 0 {
        return 0;
    }
    let ring = ptr::from_ref(&RING).cast_mut().cast();
    // SAFETY: the map pointer is patched by the loader.
    let filled = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()) };
    if filled < pressure { 0 } else { epoch }
}

/// Counts it if that was begun.
#[inline(always)]
pub fn is_counted(repeat: &Repeat) -> bool {
    let Some(count) = REPEATS.get_ptr_mut(repeat) else {
        return false;
    };
    // SAFETY: the agent removes only what nobody counts any more.
    unsafe { add(count) };
    true
}

/// Counts it from now on. Where there is no more room, each goes on being reported.
#[inline(always)]
pub fn count_on(repeat: &Repeat) {
    if REPEATS.insert(repeat, 0_u64, BPF_NOEXIST.into()).is_ok()
        && let Some(tally) = TALLY.get_ptr_mut(0)
    {
        // SAFETY: this CPU's slot, valid for the whole run.
        unsafe { add(&raw mut (*tally).repeats) };
    }
}

/// Hands a record over, and wakes the agent unless it looks by itself.
#[inline(always)]
pub fn submit<T>(entry: RingBufEntry<T>) {
    if !is_awake() {
        entry.submit(0);
        return;
    }
    entry.submit(BPF_RB_NO_WAKEUP.into());
    // It may have looked for the last time before the record was there. Both sides have a full
    // barrier between their write and their read, so one of them sees the other's.
    if !is_awake()
        && let Some(nudge) = RING.reserve_untyped::<u64>(0)
    {
        nudge.discard(BPF_RB_FORCE_WAKEUP.into());
    }
}

#[inline(always)]
fn is_awake() -> bool {
    let Some(control) = CONTROL.get_ptr(0) else {
        return false;
    };
    // SAFETY: the map's only value, which the agent writes meanwhile: hence volatile.
    unsafe { (&raw const (*control).awake).read_volatile() != 0 }
}

/// `BPF_MAP_TYPE_SK_STORAGE` with `BPF_F_CLONE`; aya-ebpf's own `SkStorage` has neither that flag
/// nor access from these contexts. The layout is that of its `btf_map_def!`.
#[repr(C)]
struct Occupants {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Occupant,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields describe the map to the loader and are never dereferenced; concurrent access
// to the map itself is the kernel's business.
unsafe impl Sync for Occupants {}

impl Occupants {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// # Safety
    ///
    /// `socket` is what the running program's type passes to `bpf_sk_storage_get`: the context of
    /// a `cgroup_sock` program, the non-null `sk` of a `sock_ops` context.
    #[inline(always)]
    unsafe fn get(
        &self,
        socket: *mut c_void,
        initial: *mut c_void,
        flags: u64,
    ) -> Option<NonNull<Occupant>> {
        // SAFETY: the map pointer is patched by the loader; the socket is the caller's promise;
        // `initial` is null or an initialised `Occupant` on this program's stack.
        let stored = unsafe {
            bpf_sk_storage_get(
                ptr::from_ref(self).cast_mut().cast(),
                socket,
                initial,
                flags,
            )
        };
        NonNull::new(stored.cast())
    }
}

/// The occupant that `socket` carries, its own or inherited.
///
/// # Safety
///
/// As for [`Occupants::get`].
#[inline(always)]
pub unsafe fn occupant(socket: *mut c_void) -> Option<NonNull<Occupant>> {
    // SAFETY: the caller's promise.
    unsafe { OCCUPANTS.get(socket, ptr::null_mut(), 0) }
}

/// Makes `socket` carry `occupant`, in place of what it carried or inherited.
///
/// # Safety
///
/// As for [`Occupants::get`].
#[inline(always)]
pub unsafe fn occupy(socket: *mut c_void, mut occupant: Occupant) {
    // SAFETY: the caller's promise; `occupant` is initialised and without padding.
    let stored = unsafe {
        OCCUPANTS.get(
            socket,
            (&raw mut occupant).cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    };
    // Without memory the socket stays unmarked: its accepts then name no listener.
    if let Some(stored) = stored {
        // SAFETY: the kernel's pointer to a live value, valid for the whole run; a `Pod` without
        // padding is as good as its words.
        unsafe {
            put(
                stored.as_ptr().cast(),
                bytemuck::cast::<_, [u32; 10]>(occupant),
            )
        };
    }
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
