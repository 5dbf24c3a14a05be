//! The deny rules: replaced all at once, so that no bind meets half of them.
#![forbid(unsafe_code)]

use std::{os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, MapError},
};
use portwatch_common::{
    DENY_BANKS, DENY_SLOTS, DenyRule, MAX_DENY_RULES, deny_flags as flags, deny_slot, names,
};

use super::{Plain, map};
use crate::{
    linux::hierarchy::{self, Hierarchy},
    model::DenyRules,
    sensor::SensorError,
};

/// Slots of one bank.
const SLOTS: u32 = DENY_SLOTS / DENY_BANKS;

/// The cgroup of a rule whose cgroup is missing: nobody's.
const NO_CGROUP: u64 = u64::MAX;

/// The deny rules in force.
#[derive(Default)]
pub(in crate::sensor) struct Deny {
    source: DenyRules,
    /// The bank that has them; 0 without any.
    bank: u32,
    /// The bank that was written last: a bind that began before may still read it.
    last_bank: u32,
    rules: Vec<DenyRule>,
    /// By slot of the bank.
    slots: Vec<u64>,
    missing: Vec<String>,
}

impl Deny {
    /// Cgroups that rules name and that are not there, or that root did not create: a rule about one of
    /// them applies to nobody until it is found.
    pub(in crate::sensor) fn missing_cgroups(&self) -> &[String] {
        &self.missing
    }

    /// Cgroups that rules name.
    pub(in crate::sensor) fn cgroups(&self) -> impl Iterator<Item = &str> {
        let rules = self.source.rules.iter();
        rules.filter_map(|rule| rule.cgroup.as_deref())
    }

    /// Whether any bind is denied.
    pub(in crate::sensor) const fn is_in_force(&self) -> bool {
        self.bank != 0
    }

    /// Puts `rules` in force instead of the ones before.
    pub(in crate::sensor) fn set(
        &mut self,
        ebpf: &mut Ebpf,
        rules: &DenyRules,
    ) -> Result<(), SensorError> {
        let mut next = Self {
            source: rules.clone(),
            last_bank: self.last_bank,
            ..Self::default()
        };
        if !rules.rules.is_empty() {
            next.bank = self.last_bank % DENY_BANKS + 1;
            next.last_bank = next.bank;
            (next.rules, next.missing) = compile(rules);
            next.slots = slots(next.bank, rules);
        }
        next.write(ebpf)?;
        *self = next;
        Ok(())
    }

    /// Looks again for the cgroups of the rules. Whether one has come, gone or changed.
    ///
    /// Only the id of a rule changes, one aligned word, so no bind meets half of it.
    pub(in crate::sensor) fn find_cgroups(
        &mut self,
        ebpf: &mut Ebpf,
    ) -> Result<bool, SensorError> {
        let (rules, missing) = compile(&self.source);
        if self.bank == 0 || (&rules, &missing) == (&self.rules, &self.missing) {
            return Ok(false);
        }
        let mut map = array::<Plain<DenyRule>>(ebpf, names::DENY_RULES)?;
        for ((index, now), before) in (self.first_rule()..).zip(&rules).zip(&self.rules) {
            if now != before {
                map.set(index, Plain(*now), 0).map_err(failed)?;
            }
        }
        (self.rules, self.missing) = (rules, missing);
        Ok(true)
    }

    /// Writes the rules again if what is in the maps is anything else. Whether it was.
    pub(in crate::sensor) fn restore(&self, ebpf: &mut Ebpf) -> Result<bool, SensorError> {
        if self.is_written(ebpf)? {
            return Ok(false);
        }
        self.write(ebpf)?;
        Ok(true)
    }

    fn is_written(&self, ebpf: &mut Ebpf) -> Result<bool, SensorError> {
        let bank = array::<u32>(ebpf, names::DENY_BANK)?;
        if bank.get(&0, 0).map_err(failed)? != self.bank {
            return Ok(false);
        }
        if self.bank == 0 {
            return Ok(true);
        }
        let rules = array::<Plain<DenyRule>>(ebpf, names::DENY_RULES)?;
        for (index, rule) in (self.first_rule()..).zip(&self.rules) {
            if rules.get(&index, 0).map_err(failed)?.0 != *rule {
                return Ok(false);
            }
        }
        let slots = array::<u64>(ebpf, names::DENY_PORTS)?;
        for (index, bits) in (self.first_slot()..).zip(&self.slots) {
            if slots.get(&index, 0).map_err(failed)? != *bits {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write(&self, ebpf: &mut Ebpf) -> Result<(), SensorError> {
        if self.bank != 0 {
            let mut rules = array::<Plain<DenyRule>>(ebpf, names::DENY_RULES)?;
            for (index, rule) in (self.first_rule()..).zip(&self.rules) {
                rules.set(index, Plain(*rule), 0).map_err(failed)?;
            }
            let mut slots = array::<u64>(ebpf, names::DENY_PORTS)?;
            for (index, bits) in (self.first_slot()..).zip(&self.slots) {
                slots.set(index, bits, 0).map_err(failed)?;
            }
        }
        array::<u32>(ebpf, names::DENY_BANK)?
            .set(0, self.bank, 0)
            .map_err(failed)
    }

    const fn first_rule(&self) -> u32 {
        self.bank.saturating_sub(1) * MAX_DENY_RULES
    }

    const fn first_slot(&self) -> u32 {
        self.bank.saturating_sub(1) * SLOTS
    }
}

/// The rules as the BPF programs evaluate them, and the cgroups that are missing.
fn compile(rules: &DenyRules) -> (Vec<DenyRule>, Vec<String>) {
    let names_cgroup = rules.rules.iter().any(|rule| rule.cgroup.is_some());
    let v2 = names_cgroup.then(hierarchy::v2).flatten();
    let mut missing = Vec::new();
    let compiled = rules.rules.iter().map(|from| {
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
            rule.level = below_root(path).components().count() as u32;
            let id = v2.as_ref().and_then(|v2| find(v2, path, from.unverified));
            rule.cgroup_id = id.unwrap_or_else(|| {
                missing.push(path.clone());
                NO_CGROUP
            });
        }
        rule
    });
    (compiled.collect(), missing)
}

/// Id of the cgroup with that path below the root of the v2 hierarchy.
fn find(v2: &Hierarchy, path: &str, unverified: bool) -> Option<u64> {
    let below = below_root(path);
    let directory = std::fs::metadata(v2.root.join(below)).ok()?;
    let is_chosen_by_root =
        || v2.chosen_by_root(path.as_bytes()).len() == below.components().count();
    (unverified || is_chosen_by_root()).then(|| directory.ino())
}

fn below_root(path: &str) -> &Path {
    Path::new(path.trim_start_matches('/'))
}

/// The slots of that bank, from its first on.
fn slots(bank: u32, rules: &DenyRules) -> Vec<u64> {
    let first = (bank - 1) * SLOTS;
    let mut slots = vec![0; SLOTS as usize];
    for (port, transport, bits) in &rules.ports {
        let slot = deny_slot(bank, transport.protocol(), (*port).into());
        if let Some(slot) = slot.and_then(|slot| slots.get_mut((slot - first) as usize)) {
            *slot = *bits;
        }
    }
    slots
}

fn failed(error: MapError) -> SensorError {
    SensorError::kernel("the deny rules", &error)
}

fn array<'a, V: Pod>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<Array<&'a mut MapData, V>, SensorError> {
    map(ebpf.map_mut(name), name, Array::try_from)
}
