//! Tells the kernel side what to refuse: all at once, so that no bind meets half of it.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    Ebpf, Pod,
    maps::{Array, MapData},
};
use portwatch_common::{
    BANKS, REFUSAL_SLOTS, REFUSALS, Refusal, names, refusal_flags as flags, refusal_slot,
};

use super::{
    SensorError,
    load::{Plain, map},
};
use crate::model::DenyRules;

/// Makes `refusals` hold instead of those before. Returns the cgroups that are not there: a rule
/// about one of them applies to nobody until it is set again.
pub(super) fn set(ebpf: &mut Ebpf, refusals: &DenyRules) -> Result<Vec<String>, SensorError> {
    let failed = |error: aya::maps::MapError| SensorError::kernel("the refusals", &error);
    let before = bank(ebpf)?.get(&0, 0).map_err(failed)?;
    if refusals.rules.is_empty() {
        bank(ebpf)?.set(0, 0, 0).map_err(failed)?;
        return Ok(Vec::new());
    }
    let now = before % BANKS + 1;
    let mut missing = Vec::new();
    let mut rules: Array<&mut MapData, Plain<Refusal>> = array(ebpf, names::REFUSAL_RULES)?;
    let first = (now - 1) * REFUSALS;
    for (index, refusal) in (first..first + REFUSALS).zip(&refusals.rules) {
        let mut rule = Refusal::default();
        if refusal.deny {
            rule.flags |= flags::DENY;
        }
        if let Some(uid) = refusal.uid {
            rule.flags |= flags::UID;
            rule.uid = uid;
        }
        if let Some(path) = &refusal.cgroup {
            rule.flags |= flags::CGROUP;
            (rule.cgroup_id, rule.level) = find(path).unwrap_or_else(|| {
                missing.push(path.clone());
                // Nobody's.
                (u64::MAX, 0)
            });
        }
        rules.set(index, Plain(rule), 0).map_err(failed)?;
    }
    let half = REFUSAL_SLOTS / BANKS;
    let first = (now - 1) * half;
    let mut slots = vec![0; half as usize];
    for (port, transport, bits) in &refusals.ports {
        let slot = refusal_slot(now, transport.protocol(), (*port).into());
        if let Some(slot) = slot.and_then(|slot| slots.get_mut((slot - first) as usize)) {
            *slot = *bits;
        }
    }
    let mut ports: Array<&mut MapData, u64> = array(ebpf, names::REFUSAL_PORTS)?;
    for (slot, bits) in (first..).zip(slots) {
        ports.set(slot, bits, 0).map_err(failed)?;
    }
    bank(ebpf)?.set(0, now, 0).map_err(failed)?;
    Ok(missing)
}

fn bank(ebpf: &mut Ebpf) -> Result<Array<&mut MapData, u32>, SensorError> {
    array(ebpf, names::REFUSAL_BANK)
}

fn array<'a, V: Pod>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<Array<&'a mut MapData, V>, SensorError> {
    map(ebpf.map_mut(name), name, Array::try_from)
}

/// Number and depth of the cgroup with that path below the root of the v2 hierarchy.
fn find(path: &str) -> Option<(u64, u32)> {
    let below = Path::new(path).strip_prefix("/").ok()?;
    let folder = std::fs::metadata(crate::linux::cgroup::root()?.join(below)).ok()?;
    Some((folder.ino(), below.components().count() as u32))
}
