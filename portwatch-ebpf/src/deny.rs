//! Whether a rule denies a bind: evaluated after the kernel has accepted it, and before the program
//! has it.

use aya_ebpf::{
    btf_maps::Array,
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_uid_gid},
    macros::btf_map,
};
use portwatch_common::{
    CGROUP_NAME_BYTES, DENY_BANKS, DENY_SLOTS, DenyRule, MAX_DENY_RULES, SYSTEM_PORTS,
    deny_flags as flags, deny_slot,
};

use crate::kernel::cgroup_name;

#[btf_map]
static DENY_BANK: Array<u32, 1> = Array::new();

/// The rules that apply to each slot, as bits of their indices.
#[btf_map]
static DENY_PORTS: Array<u64, { DENY_SLOTS as usize }> = Array::new();

#[btf_map]
static DENY_RULES: Array<DenyRule, { (DENY_BANKS * MAX_DENY_RULES) as usize }> = Array::new();

/// The bank in force, from 1 on; 0 for none.
#[inline(always)]
fn bank() -> u32 {
    match DENY_BANK.get(0) {
        Some(bank) if *bank <= DENY_BANKS => *bank,
        _ => 0,
    }
}

/// Whether the current task may not bind (port, protocol).
///
/// Kernel sockets are spared, unless a user without root has made the kernel bind one: by AF_SMC, or by a
/// device in a network namespace of its own. A bind can sleep, so the current task is the one that asks for
/// it, or a thread of the kernel.
#[inline(always)]
pub fn is_denied(is_kernel_socket: bool, port: u32, protocol: u8) -> bool {
    (!is_kernel_socket || uid() != 0) && portwatch_deny(port, protocol.into()) != 0
}

#[inline(always)]
fn uid() -> u32 {
    // SAFETY: takes no argument.
    (unsafe { bpf_get_current_uid_gid() }) as u32
}

/// As [`is_denied`], of a socket that is not spared. A function of its own for the verifier too, which then checks it once and not
/// once for each path that continues from here.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_deny(port: u32, protocol: u32) -> u32 {
    if port >= SYSTEM_PORTS {
        return 0;
    }
    decide(port, protocol as u8).into()
}

#[inline(always)]
fn decide(port: u32, protocol: u8) -> bool {
    let bank = bank();
    if bank == 0 {
        return false;
    }
    let Some(slot) = deny_slot(bank, protocol, port) else {
        return false;
    };
    let rules = DENY_PORTS.get(slot).copied().unwrap_or(0);
    if rules == 0 {
        return false;
    }
    let uid = uid();
    for index in 0..MAX_DENY_RULES {
        if rules >> index & 1 == 0 {
            continue;
        }
        let index = (bank - 1) * MAX_DENY_RULES + index;
        let Some(rule) = DENY_RULES.get(index) else {
            return false;
        };
        if matches(rule, index, uid) {
            return rule.flags & flags::DENY != 0;
        }
    }
    false
}

#[inline(always)]
fn matches(rule: &DenyRule, index: u32, uid: u32) -> bool {
    if rule.flags & flags::UID != 0 && rule.uid != uid {
        return false;
    }
    if rule.flags & flags::CGROUP == 0 {
        return true;
    }
    ancestor(rule.level) == rule.cgroup_id
        || rule.parent_id != 0
            && ancestor(rule.level.wrapping_sub(1)) == rule.parent_id
            && portwatch_has_name(index) != 0
}

/// Id of the current task's cgroup at that level; 0 where it is not as deep.
#[inline(always)]
fn ancestor(level: u32) -> u64 {
    // SAFETY: takes a level.
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// Whether the current task's cgroup at the level of the rule at `index` has the name in it. A function of
/// its own for the verifier too.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_has_name(index: u32) -> u32 {
    let Some(rule) = DENY_RULES.get(index) else {
        return 0;
    };
    let mut name = [0_u64; CGROUP_NAME_BYTES / 8];
    if !cgroup_name(rule.level, &mut name) {
        return 0;
    }
    let words = name.iter().zip(&rule.name);
    let difference = words.fold(0, |all, (here, wanted)| all | (here ^ wanted));
    u32::from(difference == 0)
}
