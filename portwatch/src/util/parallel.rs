//! The same for many things, on more than one thread: where it is the kernel that works.

use std::{num::NonZeroUsize, sync::Mutex, thread};

/// Past this many, the kernel's own locks are what they wait for.
const MOST: usize = 8;

/// As many threads as do some good on this host, for who is waiting.
#[must_use]
pub fn threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    processors.min(MOST)
}

/// What `work` makes of each item, in their order, on that many threads. The calling one does its
/// part, and all of it where no others can be started.
pub fn map<T: Send, R: Send>(
    threads: usize,
    items: Vec<T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let threads = threads.min(items.len());
    let items = Mutex::new(items.into_iter().enumerate());
    let next = || items.lock().ok()?.next();
    let part = || {
        let mut made = Vec::new();
        while let Some((index, item)) = next() {
            made.push((index, work(item)));
        }
        made
    };
    let mut all = thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, part).ok())
            .collect();
        let mut all = part();
        let theirs = others.into_iter().filter_map(|other| other.join().ok());
        all.extend(theirs.flatten());
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
        for threads in [0, 1, 4, 16] {
            let made = map(threads, items.clone(), |item| item * 2);
            assert!(made.into_iter().eq(items.iter().map(|item| item * 2)));
        }
        assert!(map(4, Vec::new(), |(): ()| ()).is_empty());
    }
}
