//! Whether a rule denies a bind: evaluated after the kernel has accepted it, and before the program
//! has it.

use aya_ebpf::{
    btf_maps::Array,
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_uid_gid},
    macros::btf_map,
};
use portwatch_common::{
    DENY_BANKS, DENY_SLOTS, DenyRule, MAX_DENY_RULES, SYSTEM_PORTS, deny_flags as flags, deny_slot,
};

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
#[inline(always)]
pub fn is_denied(port: u32, protocol: u8) -> bool {
    portwatch_deny(port, protocol.into()) != 0
}

/// As [`is_denied`]. A function of its own for the verifier too, which then checks it once and not
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
    // SAFETY: takes no argument.
    let uid = unsafe { bpf_get_current_uid_gid() } as u32;
    for index in 0..MAX_DENY_RULES {
        if rules >> index & 1 == 0 {
            continue;
        }
        let Some(rule) = DENY_RULES.get((bank - 1) * MAX_DENY_RULES + index) else {
            return false;
        };
        if matches(rule, uid) {
            return rule.flags & flags::DENY != 0;
        }
    }
    false
}

#[inline(always)]
fn matches(rule: &DenyRule, uid: u32) -> bool {
    if rule.flags & flags::UID != 0 && rule.uid != uid {
        return false;
    }
    if rule.flags & flags::CGROUP == 0 {
        return true;
    }
    // SAFETY: takes a level; 0 comes back for one that the task is not as deep as.
    unsafe { bpf_get_current_ancestor_cgroup_id(rule.level as i32) == rule.cgroup_id }
}
