//! Maps and read-only globals; their names are in `portwatch_common::names`.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{self, NonNull},
};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use portwatch_common::{Report, SYSTEM_PORTS, watch_bit};

/// Reports on their way to the agent, which sets the size.
#[btf_map]
static RING: RingBuf<Report, 262_144> = RingBuf::new();

/// Reports that found the ring full.
#[btf_map]
static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Which (port, protocol) is watched: `watch_bit`s by port.
#[btf_map]
static WATCHED: Array<u32, { SYSTEM_PORTS as usize }> = Array::new();

/// What a socket on a watched port carries with it.
#[btf_map]
static OCCUPANTS: Occupants = Occupants::new();

#[unsafe(no_mangle)]
static SOCK_OPS_TASK: u8 = 1;

#[unsafe(no_mangle)]
static SOCK_OPS_NETNS: u8 = 1;

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

/// Room for one report in the ring, or None (counted) when it is full.
#[inline(always)]
pub fn reserve() -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<Report>> {
    let entry = RING.reserve(0);
    if entry.is_none()
        && let Some(lost) = LOST.get_ptr_mut(0)
    {
        // SAFETY: the pointer is this CPU's slot, valid for the whole run. Another run may preempt
        // this one on the same CPU, so the increment is atomic.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(lost, 1) };
    }
    entry
}

/// A socket's stay on a watched port, stored in the socket itself: it goes when the socket goes.
/// A listener's children inherit a copy, which is how an accept names its listener.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Occupant {
    /// Cookie of the socket that took the port; in a child, its listener's.
    pub cookie: u64,
    /// Network byte order, as in `Report`.
    pub address: [u32; 4],
    /// Host byte order.
    pub port: u16,
    pub family: u8,
    pub protocol: u8,
    /// Not 0 once the close was reported: two hooks can see the same one.
    pub closed: u32,
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
        // SAFETY: the kernel's pointer to a live value, valid for the whole run.
        unsafe { stored.as_ptr().write(occupant) };
    }
}
