//! The deny rules: replaced all at once, so that no bind meets half of them.
#![forbid(unsafe_code)]

use std::{os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    Ebpf, Pod,
    maps::{Array, MapData},
};
use portwatch_common::{
    DENY_BANKS, DENY_SLOTS, DenyRule, MAX_DENY_RULES, deny_flags as flags, deny_slot, names,
};

use super::{Plain, map};
use crate::{
    linux::{cgroup, hierarchy},
    model::DenyRules,
    sensor::SensorError,
};

/// Puts `deny` in force instead of the rules before. Returns the cgroups that are not there, or that
/// root did not create: a rule about one of them applies to nobody until it is set again.
pub(in crate::sensor) fn set(
    ebpf: &mut Ebpf,
    deny: &DenyRules,
) -> Result<Vec<String>, SensorError> {
    let failed = |error: aya::maps::MapError| SensorError::kernel("the deny rules", &error);
    let before = bank(ebpf)?.get(&0, 0).map_err(failed)?;
    if deny.rules.is_empty() {
        bank(ebpf)?.set(0, 0, 0).map_err(failed)?;
        return Ok(Vec::new());
    }
    let now = before % DENY_BANKS + 1;
    let mut missing = Vec::new();
    let mut rules: Array<&mut MapData, Plain<DenyRule>> = array(ebpf, names::DENY_RULES)?;
    let first = (now - 1) * MAX_DENY_RULES;
    for (index, from) in (first..first + MAX_DENY_RULES).zip(&deny.rules) {
        let mut rule = DenyRule::default();
        if from.deny {
            rule.flags |= flags::DENY;
        }
        if let Some(uid) = from.uid {
            rule.flags |= flags::UID;
            rule.uid = uid;
        }
        if let Some(path) = &from.cgroup {
            rule.flags |= flags::CGROUP;
            (rule.cgroup_id, rule.level) = find(path, from.unverified).unwrap_or_else(|| {
                missing.push(path.clone());
                // Nobody's.
                (u64::MAX, 0)
            });
        }
        rules.set(index, Plain(rule), 0).map_err(failed)?;
    }
    let half = DENY_SLOTS / DENY_BANKS;
    let first = (now - 1) * half;
    let mut slots = vec![0; half as usize];
    for (port, transport, bits) in &deny.ports {
        let slot = deny_slot(now, transport.protocol(), (*port).into());
        if let Some(slot) = slot.and_then(|slot| slots.get_mut((slot - first) as usize)) {
            *slot = *bits;
        }
    }
    let mut ports: Array<&mut MapData, u64> = array(ebpf, names::DENY_PORTS)?;
    for (slot, bits) in (first..).zip(slots) {
        ports.set(slot, bits, 0).map_err(failed)?;
    }
    bank(ebpf)?.set(0, now, 0).map_err(failed)?;
    Ok(missing)
}

fn bank(ebpf: &mut Ebpf) -> Result<Array<&mut MapData, u32>, SensorError> {
    array(ebpf, names::DENY_BANK)
}

fn array<'a, V: Pod>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<Array<&'a mut MapData, V>, SensorError> {
    map(ebpf.map_mut(name), name, Array::try_from)
}

/// Number and depth of the cgroup with that path below the root of the v2 hierarchy.
fn find(path: &str, unverified: bool) -> Option<(u64, u32)> {
    let below = Path::new(path).strip_prefix("/").ok()?;
    let root = cgroup::root()?;
    let directory = std::fs::metadata(root.join(below)).ok()?;
    let depth = below.components().count();
    let v2 = hierarchy::all().into_iter().find(|one| one.is_v2)?;
    (unverified || v2.chosen_by_root(path.as_bytes()).len() == depth)
        .then_some((directory.ino(), depth as u32))
}
