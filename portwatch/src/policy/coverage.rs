//! What a rule says about (port, transport, status), as sets: what is done for each port is then
//! independent of how long the rule's lists are.

use super::{Condition, Rule};
use crate::{
    model::Transport,
    registry::{LAST_SYSTEM_PORT, Status},
};

const WORDS: usize = LAST_SYSTEM_PORT as usize / 64 + 1;

/// A set of system ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortSet([u64; WORDS]);

impl PortSet {
    pub(super) const NONE: Self = Self([0; WORDS]);
    pub(super) const ALL: Self = Self([u64::MAX; WORDS]);

    pub(super) fn insert(&mut self, first: u16, last: u16) {
        for (index, word) in self.0.iter_mut().enumerate() {
            let start = index as u32 * 64;
            let from = u32::from(first).saturating_sub(start);
            let to = u32::from(last).saturating_add(1).saturating_sub(start);
            *word |= below(to) & !below(from);
        }
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        let word = self.0.get(usize::from(port) / 64).copied();
        word.unwrap_or(0) >> (port % 64) & 1 == 1
    }

    pub(super) fn and(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
        self
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }

    pub(super) fn remove(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= !b);
    }
}

/// The lowest `count` bits.
fn below(count: u32) -> u64 {
    1_u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1)
}

/// The ports, transports and statuses that a rule covers.
pub(super) struct Coverage {
    ports: PortSet,
    transports: [bool; Transport::ALL.len()],
    statuses: [bool; Status::ALL.len()],
}

impl Coverage {
    /// Without a condition on port or status a rule covers the ports that are not assigned.
    pub(super) fn of(rule: &Rule) -> Self {
        let mut coverage = Self {
            ports: PortSet::ALL,
            transports: [true; Transport::ALL.len()],
            statuses: [true; Status::ALL.len()],
        };
        let mut names_ports = false;
        for condition in &rule.conditions {
            match condition {
                Condition::Port(ranges) => {
                    names_ports = true;
                    coverage.ports = PortSet::NONE;
                    for range in ranges {
                        range.insert_into(&mut coverage.ports);
                    }
                }
                Condition::Transport(transports) => {
                    coverage.transports = Transport::ALL.map(|one| transports.contains(&one));
                }
                Condition::Status(statuses) => {
                    names_ports = true;
                    coverage.statuses = Status::ALL.map(|one| statuses.contains(&one));
                }
                _ => {}
            }
        }
        if !names_ports {
            coverage.statuses = Status::ALL.map(|one| one != Status::Assigned);
        }
        coverage
    }

    pub(super) fn covers(&self, port: u16, transport: Transport, status: Status) -> bool {
        self.ports.contains(port) && self.ports(transport, status).is_some()
    }

    /// The ports of that transport and status.
    pub(super) fn ports(&self, transport: Transport, status: Status) -> Option<&PortSet> {
        let has = |flag: bool| flag.then_some(());
        let transport = Transport::ALL.iter().position(|one| *one == transport)?;
        has(*self.transports.get(transport)?)?;
        let status = Status::ALL.iter().position(|one| *one == status)?;
        has(*self.statuses.get(status)?)?;
        Some(&self.ports)
    }

    /// Whether a socket can be covered by both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let both = |ours: &[bool], theirs: &[bool]| {
            ours.iter()
                .zip(theirs)
                .any(|(ours, theirs)| *ours && *theirs)
        };
        self.ports.and(&other.ports) != PortSet::NONE
            && both(&self.transports, &other.transports)
            && both(&self.statuses, &other.statuses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sets_of_ports() {
        for (first, last) in [
            (1, 1),
            (0, 1023),
            (63, 64),
            (64, 127),
            (5, 700),
            (1023, 1023),
        ] {
            let mut set = PortSet::NONE;
            set.insert(first, last);
            for port in 0..=LAST_SYSTEM_PORT {
                assert_eq!(set.contains(port), (first..=last).contains(&port), "{port}");
            }
            let mut rest = PortSet::ALL;
            rest.remove(&set);
            assert_eq!(rest.and(&set), PortSet::NONE);
            rest.add(&set);
            assert_eq!(rest, PortSet::ALL);
        }
        assert!(!PortSet::ALL.contains(1024));
    }
}
