//! What one registry says otherwise than another.

use std::fmt;

use super::{Registry, TRANSPORTS, Verdict, system_ports};
use crate::model::Transport;

/// Neighbouring ports of which the same transports changed in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    first: u16,
    last: u16,
    transports: Vec<Transport>,
    old: Verdict,
    new: Verdict,
}

/// The changes from `old` to `new` in port order. A row that was only split or joined is none.
#[must_use]
pub fn diff(old: &Registry, new: &Registry) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for port in system_ports() {
        let mut here: Vec<Change> = Vec::new();
        for transport in TRANSPORTS {
            let (Some(before), Some(after)) =
                (old.verdict(port, transport), new.verdict(port, transport))
            else {
                continue;
            };
            if says(before) == says(after) {
                continue;
            }
            let same = |change: &&mut Change| {
                says(&change.old) == says(before) && says(&change.new) == says(after)
            };
            match here.iter_mut().find(same) {
                Some(change) => change.transports.push(transport),
                None => here.push(Change {
                    first: port,
                    last: port,
                    transports: vec![transport],
                    old: before.clone(),
                    new: after.clone(),
                }),
            }
        }
        for change in here {
            let continued = changes
                .iter_mut()
                .rev()
                .take(TRANSPORTS.len())
                .find(|known| {
                    known.last + 1 == port
                        && known.transports == change.transports
                        && says(&known.old) == says(&change.old)
                        && says(&known.new) == says(&change.new)
                });
            match continued {
                Some(known) => known.last = port,
                None => changes.push(change),
            }
        }
    }
    changes
}

/// The part of a verdict whose change is worth a line.
fn says(verdict: &Verdict) -> (super::Status, &[crate::model::Printable]) {
    (verdict.status, &verdict.services)
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.first != self.last {
            write!(f, "-{}", self.last)?;
        }
        let transports: Vec<_> = self
            .transports
            .iter()
            .map(|transport| transport.name())
            .collect();
        write!(f, "/{}: ", transports.join(","))?;
        let side = |f: &mut fmt::Formatter<'_>, verdict: &Verdict| {
            f.write_str(verdict.status.name())?;
            if !verdict.services.is_empty() {
                write!(f, " ({})", verdict.services.join(", "))?;
            }
            Ok(())
        };
        side(f, &self.old)?;
        f.write_str(" -> ")?;
        side(f, &self.new)
    }
}
