//! The marks of sockets on watched ports, and how many sockets have one of their own.
//!
//! `Control::marked_sockets` spares every other close on the host the look-up of a mark, so it must
//! never be too low; too high only costs time. A socket is counted when a mark of its own (its
//! cookie in it) is stored, and uncounted when `sock_release` finds that mark:
//!
//! - Bind then listen, or a socket that listens again: the mark is its own already and not counted
//!   again. The system calls that mark hold the socket's lock.
//! - A child that inherited its listener's mark was never counted, and its release, whose cookie is
//!   another, uncounts nothing. Once it takes a port itself, its mark becomes its own and is counted.
//! - Without memory there is no mark and no count; nor is there after a denied bind.
//! - `inet_release` (net/ipv4/af_inet.c, 5.10 to 6.18) runs `sock_release` once for a socket, after
//!   the system calls that marked it have let go of its file. So the count is there before.
//! - It skips kernel sockets, among them MPTCP's subflows: these stay counted. Their end is not
//!   uncounted in `STATE_CB` either, since before Linux 5.12 nothing atomic could distinguish it from the
//!   `sock_release` that runs at the same time (`tcp_abort` in net/ipv4/tcp.c needs no file).
//! - The agent counts first and marks then, and uncounts where the kernel did not take its mark.

use core::{
    ffi::c_void,
    ptr::{self, NonNull},
};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use portwatch_common::SocketMark;

use crate::{control::count_marked_socket, field::put, report::Local};

#[btf_map]
static SOCKET_MARKS: SocketMarks = SocketMarks::new();

/// `BPF_MAP_TYPE_SK_STORAGE` with `BPF_F_CLONE`; aya-ebpf's own `SkStorage` has neither that flag
/// nor access from these contexts. The fields are those of its `btf_map_def!`.
#[repr(C)]
struct SocketMarks {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketMark,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields describe the map to the loader and are never dereferenced; concurrent access
// to the map itself is the kernel's business.
unsafe impl Sync for SocketMarks {}

impl SocketMarks {
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
    /// a `cgroup_sock` program, the non-null `sk` of a `sock_ops` context. `initial` is null or a
    /// `SocketMark` on this program's stack.
    #[inline(always)]
    unsafe fn get(
        &self,
        socket: *mut c_void,
        initial: *mut SocketMark,
        flags: u32,
    ) -> Option<NonNull<SocketMark>> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the map pointer is patched by the loader; the rest is the caller's promise.
        let stored = unsafe { bpf_sk_storage_get(map, socket, initial.cast(), flags.into()) };
        NonNull::new(stored.cast())
    }
}

/// The mark of `socket`, its own or inherited.
///
/// # Safety
///
/// As for [`SocketMarks::get`].
#[inline(always)]
pub unsafe fn mark_of(socket: *mut c_void) -> Option<NonNull<SocketMark>> {
    // SAFETY: the caller's promise; null asks for no creation.
    unsafe { SOCKET_MARKS.get(socket, ptr::null_mut(), 0) }
}

#[inline(always)]
const fn new(cookie: u64, local: Local) -> SocketMark {
    let Local {
        family,
        protocol,
        address,
        port,
    } = local;
    SocketMark::new(cookie, address, port, family, protocol)
}

/// Marks `socket` as the one on `local`, in place of what it had or inherited. `cookie` is its own,
/// `counted` its [`portwatch_common::counted`] bits.
///
/// # Safety
///
/// As for [`SocketMarks::get`].
#[inline(always)]
pub unsafe fn mark(socket: *mut c_void, cookie: u64, local: Local, counted: u16, binder: u32) {
    let mark = SocketMark {
        counted,
        binder,
        ..new(cookie, local)
    };
    // No socket's: what distinguishes a new mark from an existing one.
    let mut initial = SocketMark { cookie: 0, ..mark };
    // SAFETY: the caller's promise; `initial` is initialised and without padding.
    let stored = unsafe { SOCKET_MARKS.get(socket, &raw mut initial, BPF_SK_STORAGE_GET_F_CREATE) };
    // Without memory the socket stays unmarked: its accepts then name no listener.
    let Some(stored) = stored else {
        return;
    };
    count_marked_socket(cookie, field!(stored.as_ptr(), cookie));
    // SAFETY: the kernel's pointer to a live value, valid for the whole run; a `Pod` without
    // padding is as good as its words.
    unsafe {
        put(stored.as_ptr().cast(), bytemuck::cast::<_, [u32; 12]>(mark));
    };
}

/// Marks an accepted socket that inherited no mark, so that its end is reported. It is not counted: its
/// release is no news.
///
/// # Safety
///
/// As for [`SocketMarks::get`].
#[inline(always)]
pub unsafe fn mark_accepted(socket: *mut c_void, local: Local) -> Option<NonNull<SocketMark>> {
    let mut initial = new(0, local);
    // SAFETY: the caller's promise; `initial` is initialised and without padding.
    unsafe { SOCKET_MARKS.get(socket, &raw mut initial, BPF_SK_STORAGE_GET_F_CREATE) }
}
