//! Whether a rule refuses a bind: asked after the kernel has accepted it, and before the program has
//! it.

use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_uid_gid};
use portwatch_common::{REFUSALS, Refusal, SYSTEM_PORTS, refusal_flags as flags, refusal_slot};

use crate::maps::{refusal, refusal_bank, refusals_of};

/// Whether the current task may not bind (port, protocol).
#[inline(always)]
pub fn is_refused(port: u32, protocol: u8) -> bool {
    portwatch_refuses(port, protocol.into()) != 0
}

/// As [`is_refused`]. A function of its own for the verifier too: it looks at it once, not once for
/// each way that leads on from here.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_refuses(port: u32, protocol: u32) -> u32 {
    if port >= SYSTEM_PORTS {
        return 0;
    }
    refuses(port, protocol as u8).into()
}

#[inline(always)]
fn refuses(port: u32, protocol: u8) -> bool {
    let bank = refusal_bank();
    if bank == 0 {
        return false;
    }
    let Some(slot) = refusal_slot(bank, protocol, port) else {
        return false;
    };
    let rules = refusals_of(slot);
    if rules == 0 {
        return false;
    }
    // SAFETY: takes no argument.
    let uid = unsafe { bpf_get_current_uid_gid() } as u32;
    for index in 0..REFUSALS {
        if rules >> index & 1 == 0 {
            continue;
        }
        let Some(rule) = refusal(bank, index) else {
            return false;
        };
        if applies(rule, uid) {
            return rule.flags & flags::DENY != 0;
        }
    }
    false
}

#[inline(always)]
fn applies(rule: &Refusal, uid: u32) -> bool {
    if rule.flags & flags::UID != 0 && rule.uid != uid {
        return false;
    }
    if rule.flags & flags::CGROUP == 0 {
        return true;
    }
    // SAFETY: takes a level; 0 comes back for one that the task is not as deep as.
    unsafe { bpf_get_current_ancestor_cgroup_id(rule.level as i32) == rule.cgroup_id }
}
