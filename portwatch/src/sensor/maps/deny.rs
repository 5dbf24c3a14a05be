//! The deny rules: replaced all at once, so that no bind meets half of them.
#![forbid(unsafe_code)]

use std::{
    io,
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, Pod,
    maps::{Array, Map, MapData, MapError},
};
use portwatch_common::{
    CGROUP_NAME_BYTES, DENY_BANKS, DENY_SLOTS, DenyRule, MAX_DENY_RULES, deny_flags as flags,
    deny_slot, names,
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

/// The deny rules in force, for the thread that replaces them and for the one that follows their
/// cgroups.
#[derive(Clone)]
pub struct Deny(Arc<Mutex<State>>);

struct State {
    bank: Array<MapData, u32>,
    rules: Array<MapData, Plain<DenyRule>>,
    ports: Array<MapData, u64>,
    in_force: InForce,
}

/// What the maps have.
#[derive(Default)]
struct InForce {
    source: Arc<DenyRules>,
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
    /// No rules.
    pub(in crate::sensor) fn new(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self(Arc::new(Mutex::new(State {
            bank: array(ebpf, names::DENY_BANK)?,
            rules: array(ebpf, names::DENY_RULES)?,
            ports: array(ebpf, names::DENY_PORTS)?,
            in_force: InForce::default(),
        }))))
    }

    /// Puts `rules` in force instead of the ones before.
    pub(in crate::sensor) fn set(&self, rules: &DenyRules) -> Result<(), SensorError> {
        let (compiled, missing) = compile(rules);
        let compiled: Vec<DenyRule> = compiled.iter().map(|one| one.in_force(None)).collect();
        let mut state = self.lock();
        let mut next = InForce {
            source: Arc::new(rules.clone()),
            last_bank: state.in_force.last_bank,
            ..InForce::default()
        };
        if !compiled.is_empty() {
            next.bank = next.last_bank % DENY_BANKS + 1;
            next.last_bank = next.bank;
            next.slots = slots(next.bank, rules);
            (next.rules, next.missing) = (compiled, missing);
        }
        state.write(&next)?;
        state.in_force = next;
        Ok(())
    }

    /// Whether any rule is.
    pub(in crate::sensor) fn is_in_force(&self) -> bool {
        self.lock().in_force.bank != 0
    }

    /// Writes the rules again if what is in the maps is anything else. Whether it was.
    pub(in crate::sensor) fn restore(&self) -> Result<bool, SensorError> {
        let mut state = self.lock();
        if state.is_written()? {
            return Ok(false);
        }
        let in_force = std::mem::take(&mut state.in_force);
        let written = state.write(&in_force);
        state.in_force = in_force;
        written.map(|()| true)
    }

    /// Cgroups that rules name.
    #[must_use]
    pub fn cgroups(&self) -> Vec<String> {
        let source = self.source();
        let rules = source.rules.iter();
        rules.filter_map(|rule| rule.cgroup.clone()).collect()
    }

    /// Cgroups that rules name and that are not there, or that root did not create: a rule about one of
    /// them applies to nobody until it is found.
    #[must_use]
    pub fn missing_cgroups(&self) -> Vec<String> {
        self.lock().in_force.missing.clone()
    }

    /// Looks again for the cgroups of the rules. False when it could not be read who created one: then
    /// this is to be called once more.
    ///
    /// Only the ids of a rule change, each an aligned word and each right by itself.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn find_cgroups(&self) -> Result<bool, SensorError> {
        let source = self.source();
        let (rules, missing) = compile(&source);
        let mut state = self.lock();
        let State {
            rules: map,
            in_force,
            ..
        } = &mut *state;
        // Other rules meanwhile, whose cgroups were looked up with them.
        if in_force.bank == 0 || !Arc::ptr_eq(&source, &in_force.source) {
            return Ok(true);
        }
        let is_certain = rules.iter().all(|rule| rule.is_certain);
        for ((index, now), before) in (first_rule(in_force.bank)..)
            .zip(rules)
            .zip(&mut in_force.rules)
        {
            let now = now.in_force(Some(before));
            if now != *before {
                map.set(index, Plain(now), 0).map_err(failed)?;
                *before = now;
            }
        }
        in_force.missing = missing;
        Ok(is_certain)
    }

    fn source(&self) -> Arc<DenyRules> {
        Arc::clone(&self.lock().in_force.source)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_written(&self) -> Result<bool, SensorError> {
        let InForce {
            bank, rules, slots, ..
        } = &self.in_force;
        if self.bank.get(&0, 0).map_err(failed)? != *bank {
            return Ok(false);
        }
        for (index, rule) in (first_rule(*bank)..).zip(rules) {
            if self.rules.get(&index, 0).map_err(failed)?.0 != *rule {
                return Ok(false);
            }
        }
        for (index, bits) in (first_slot(*bank)..).zip(slots) {
            if self.ports.get(&index, 0).map_err(failed)? != *bits {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write(&mut self, in_force: &InForce) -> Result<(), SensorError> {
        let bank = in_force.bank;
        for (index, rule) in (first_rule(bank)..).zip(&in_force.rules) {
            self.rules.set(index, Plain(*rule), 0).map_err(failed)?;
        }
        for (index, bits) in (first_slot(bank)..).zip(&in_force.slots) {
            self.ports.set(index, bits, 0).map_err(failed)?;
        }
        self.bank.set(0, bank, 0).map_err(failed)
    }
}

const fn first_rule(bank: u32) -> u32 {
    bank.saturating_sub(1) * MAX_DENY_RULES
}

const fn first_slot(bank: u32) -> u32 {
    bank.saturating_sub(1) * SLOTS
}

/// A rule as the BPF programs evaluate it.
#[derive(Clone, Copy)]
struct Compiled {
    rule: DenyRule,
    /// Whether it is known who created its cgroup.
    is_certain: bool,
}

impl Compiled {
    /// What is to be in force instead of `before`. While it is not known whether root created the cgroup, it
    /// is denied, and an exception stays as it was.
    fn in_force(&self, before: Option<&DenyRule>) -> DenyRule {
        let mut rule = self.rule;
        let is_deny = rule.flags & flags::DENY != 0;
        if !self.is_certain && !is_deny && before != Some(&rule) {
            rule.cgroup_id = NO_CGROUP;
            (rule.parent_id, rule.name) = Default::default();
        }
        rule
    }
}

/// The rules, and the cgroups that are missing.
fn compile(rules: &DenyRules) -> (Vec<Compiled>, Vec<String>) {
    let names_cgroup = rules.rules.iter().any(|rule| rule.cgroup.is_some());
    let v2 = names_cgroup.then(hierarchy::v2).flatten();
    let mut missing = Vec::new();
    let compiled = rules.rules.iter().map(|from| {
        let mut rule = DenyRule::default();
        let mut is_certain = true;
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
            let is_chosen = match &v2 {
                Some(v2) if !from.unverified => v2.is_chosen_by_root(path.as_bytes()),
                v2 => Some(v2.is_some()),
            };
            is_certain = is_chosen.is_some();
            let found = v2.as_ref().filter(|_| is_chosen != Some(false));
            let (id, above) = found.map(|v2| find(v2, path)).unwrap_or_default();
            rule.cgroup_id = id.unwrap_or_else(|| {
                missing.push(path.clone());
                NO_CGROUP
            });
            if let Some((parent, name)) = above {
                (rule.parent_id, rule.name) = (parent, name);
            }
        }
        Compiled { rule, is_certain }
    });
    (compiled.collect(), missing)
}

/// A cgroup's name as the BPF programs compare it.
type Name = [u64; CGROUP_NAME_BYTES / 8];

/// Id of the cgroup with that path below the root of the v2 hierarchy, and of the one above with the name in
/// it.
fn find(v2: &Hierarchy, path: &str) -> (Option<u64>, Option<(u64, Name)>) {
    let below = below_root(path);
    let id = |path: &Path| Some(std::fs::metadata(v2.root.join(path)).ok()?.ino());
    let above = below.parent().and_then(id).zip(name(below));
    (id(below), above)
}

/// The last name on the path; None where it is too long.
fn name(path: &Path) -> Option<Name> {
    let bytes = path.file_name()?.as_bytes();
    let mut name = [0; CGROUP_NAME_BYTES];
    name.get_mut(..bytes.len())
        .filter(|_| bytes.len() <= CGROUP_NAME_BYTES - 2)?
        .copy_from_slice(bytes);
    Some(bytemuck::cast(name))
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

/// The array of that name, with a descriptor of its own.
fn array<V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Array<MapData, V>, SensorError> {
    let data = map(ebpf.map(name), name, |map| match map {
        Map::Array(data) => Ok(data.fd().as_fd().try_clone_to_owned()?),
        _ => Err(io::Error::other("is no array")),
    })?;
    let data = MapData::from_fd(data).map_err(failed)?;
    Array::try_from(Map::Array(data)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Transport,
        sensor::object::{HostFeatures, OBJECT, load},
    };

    #[test]
    fn what_another_program_writes_is_found_and_put_back() {
        let (features, loader) = HostFeatures::read();
        let mut ebpf = load(loader, OBJECT, 1 << 12, &features).unwrap();
        let deny = Deny::new(&mut ebpf).unwrap();
        assert!(!deny.restore().unwrap());
        let rule = crate::model::DenyRule {
            deny: true,
            uid: Some(33),
            cgroup: None,
            unverified: false,
        };
        let rules = DenyRules {
            rules: vec![rule],
            ports: vec![(976, Transport::Udp, 1)],
        };
        let mut bank = array::<u32>(&mut ebpf, names::DENY_BANK).unwrap();
        let mut slots = array::<u64>(&mut ebpf, names::DENY_PORTS).unwrap();
        let mut wire = array::<Plain<DenyRule>>(&mut ebpf, names::DENY_RULES).unwrap();
        // Once for each bank.
        for in_force in [1, 2] {
            deny.set(&rules).unwrap();
            assert!(!deny.restore().unwrap());
            let slot = deny_slot(in_force, Transport::Udp.protocol(), 976).unwrap();
            let other = deny_slot(in_force, Transport::Tcp.protocol(), 1).unwrap();
            let first = first_rule(in_force);
            let whole = |tampered: &str| {
                assert!(deny.restore().unwrap(), "{tampered}");
                assert!(!deny.restore().unwrap(), "{tampered}");
            };
            bank.set(0, 0, 0).unwrap();
            whole("bank");
            assert_eq!(bank.get(&0, 0).unwrap(), in_force);
            slots.set(slot, 0, 0).unwrap();
            whole("a port that is denied");
            assert_eq!(slots.get(&slot, 0).unwrap(), 1);
            slots.set(other, 1, 0).unwrap();
            whole("a port that is not");
            assert_eq!(slots.get(&other, 0).unwrap(), 0);
            wire.set(first, Plain(DenyRule::default()), 0).unwrap();
            whole("rule");
            assert_eq!(wire.get(&first, 0).unwrap().0.uid, 33);
        }
        deny.set(&DenyRules::default()).unwrap();
        assert!(!deny.restore().unwrap());
        bank.set(0, 1, 0).unwrap();
        assert!(deny.restore().unwrap());
        assert_eq!(bank.get(&0, 0).unwrap(), 0);
    }
}
