//! Read-only globals, which the agent sets before loading; the verifier drops the branches that they
//! rule out.

use portwatch_common::KernelOffsets;

#[unsafe(no_mangle)]
static SOCK_OPS_TASK: u8 = 1;

#[unsafe(no_mangle)]
static SOCK_OPS_NETNS: u8 = 1;

#[unsafe(no_mangle)]
pub static KERNEL_OFFSETS: KernelOffsets = KernelOffsets::UNKNOWN;

/// Reads a global. The volatile read keeps the compiler from folding in the value that stands in
/// this source.
macro_rules! global {
    ($($name:tt)+) => {
        // SAFETY: the global lives in .rodata for as long as the program is loaded.
        unsafe { core::ptr::read_volatile(&raw const $($name)+) }
    };
}

/// One of the running kernel's offsets.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: the global lives in .rodata for as long as the program is loaded; volatile as in
        // `global`.
        u64::from(unsafe {
            core::ptr::read_volatile(&raw const $crate::globals::KERNEL_OFFSETS.$field)
        })
    };
}
pub(crate) use offset;

/// The helpers that a hook may call: the verifier must not meet the others.
#[derive(Clone, Copy)]
pub struct AvailableHelpers {
    /// Those that ask for the current task. Only where that is the task that acts.
    pub task: bool,
    /// `bpf_get_netns_cookie`.
    pub netns: bool,
}

impl AvailableHelpers {
    /// In a `cgroup_sock` or `cgroup_sock_addr` program, in the context of the task that acts.
    pub const CGROUP_SOCK: Self = Self {
        task: true,
        netns: true,
    };

    /// In a tracepoint, in the context of the task that acts.
    pub const TRACEPOINT: Self = Self {
        task: true,
        netns: false,
    };

    /// In a `sock_ops` program, in the context of the task that acts.
    #[inline(always)]
    pub fn sock_ops() -> Self {
        Self {
            task: global!(SOCK_OPS_TASK) != 0,
            netns: global!(SOCK_OPS_NETNS) != 0,
        }
    }

    /// The same where the current task is any.
    #[inline(always)]
    pub const fn without_task(self) -> Self {
        Self {
            task: false,
            netns: self.netns,
        }
    }
}
