//! The ancestors of a process.
#![forbid(unsafe_code)]

use std::{cell::RefCell, sync::Arc};

use super::{
    Ancestor, MAX_ANCESTOR_EXE, MAX_ANCESTORS, MAX_COMM, Process,
    entry::{self, ProcEntry},
};
use crate::model::Printable;

/// Ancestors that are looked for.
const MAX_GENERATIONS: usize = 16;

/// Adds the parents of a process that started at `start_ns`, up to the first that has ended.
pub(super) fn set_ancestors(process: &mut Process, mut start_ns: u64) {
    let mut parent = process.ppid;
    let mut ancestors = Vec::new();
    process.ancestors_omitted = 0;
    let mut left = MAX_ANCESTORS;
    for generation in 0..=MAX_GENERATIONS {
        // A parent is older than its child; a younger process has reused the pid.
        let Some((pid, entry)) = parent
            .filter(|pid| *pid != 0)
            .and_then(|pid| Some((pid, ProcEntry::open(pid)?)))
            .filter(|(_, entry)| entry.start_ns() <= start_ns)
        else {
            break;
        };
        start_ns = entry.start_ns() + *entry::TICK_NS;
        parent = Some(entry.ppid());
        if generation == MAX_GENERATIONS || process.ancestors_omitted > 0 {
            process.ancestors_omitted += 1;
            continue;
        }
        let one = Ancestor {
            pid,
            comm: Printable::limited(entry.comm(), MAX_COMM),
            exe: entry
                .exe()
                .0
                .map(|exe| Printable::limited(&exe, MAX_ANCESTOR_EXE)),
        };
        match left.checked_sub(one.json_bytes()) {
            Some(rest) => {
                left = rest;
                ancestors.push(one);
            }
            None => process.ancestors_omitted += 1,
        }
    }
    process.ancestors = shared(ancestors);
}

thread_local! {
    /// The last ancestors: many processes have the same.
    static ANCESTORS: RefCell<Arc<[Ancestor]>> = RefCell::new(Arc::default());
}

/// The same list once, as far as possible.
fn shared(ancestors: Vec<Ancestor>) -> Arc<[Ancestor]> {
    ANCESTORS.with_borrow_mut(|last| {
        if **last != *ancestors {
            *last = ancestors.into();
        }
        Arc::clone(last)
    })
}
