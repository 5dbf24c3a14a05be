//! The differences between two registries.

use std::fmt;

use super::{Entry, Registry, TRANSPORTS, system_ports};
use crate::model::Transport;

/// Adjacent ports with the same change on the same transports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    first: u16,
    last: u16,
    transports: Vec<Transport>,
    old: Entry,
    new: Entry,
}

/// The changes from `old` to `new` in port order. Rows that were only split or merged are no change.
#[must_use]
pub fn diff(old: &Registry, new: &Registry) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for port in system_ports() {
        let mut here: Vec<Change> = Vec::new();
        for transport in TRANSPORTS {
            let (Some(before), Some(after)) =
                (old.entry(port, transport), new.entry(port, transport))
            else {
                continue;
            };
            if compared(before) == compared(after) {
                continue;
            }
            let same = |change: &&mut Change| {
                compared(&change.old) == compared(before)
                    && compared(&change.new) == compared(after)
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
                        && compared(&known.old) == compared(&change.old)
                        && compared(&known.new) == compared(&change.new)
                });
            match continued {
                Some(known) => known.last = port,
                None => changes.push(change),
            }
        }
    }
    changes
}

/// The part of an entry that is compared.
fn compared(entry: &Entry) -> (super::Status, &[crate::model::Printable]) {
    (entry.status, &entry.services)
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
        let side = |f: &mut fmt::Formatter<'_>, entry: &Entry| {
            f.write_str(entry.status.name())?;
            if !entry.services.is_empty() {
                write!(f, " ({})", entry.services.join(", "))?;
            }
            Ok(())
        };
        side(f, &self.old)?;
        f.write_str(" -> ")?;
        side(f, &self.new)
    }
}
