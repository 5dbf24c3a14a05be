//! The same for many things, on more than one thread: reading them is work for the kernel.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Past this many, the kernel's own locks are what they wait for.
const MOST: usize = 8;

/// As many threads as do some good on this host, for who is waiting.
#[must_use]
pub fn threads() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .min(MOST)
}

/// What `work` makes of each item, in their order. The calling thread does its part, and all of it
/// where no others can be started.
pub(super) fn map<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let part = || {
        let mut made = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return made;
            };
            made.push((index, work(item)));
        }
    };
    let mut all = thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(items.len()))
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, part).ok())
            .collect();
        let mut all = part();
        all.extend(
            others
                .into_iter()
                .filter_map(|other| other.join().ok())
                .flatten(),
        );
        all
    });
    all.sort_unstable_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_in_order() {
        let items: Vec<usize> = (0..1000).collect();
        for threads in [0, 1, 4, 2000] {
            let made = map(threads.min(16), &items, |item| item * 2);
            assert!(made.into_iter().eq(items.iter().map(|item| item * 2)));
        }
        assert!(map(4, &[], |(): &()| ()).is_empty());
    }
}
