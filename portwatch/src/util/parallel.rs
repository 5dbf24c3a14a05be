//! Parallel iteration, for work that is mostly system calls.

use std::{num::NonZeroUsize, sync::Mutex, thread};

/// More threads only wait for the kernel's locks.
const MAX_THREADS: usize = 8;

/// The number of threads that is fastest on this host.
#[must_use]
pub fn threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    processors.min(MAX_THREADS)
}

/// The results of `work` for each item, in their order, with `threads` threads. The calling thread
/// takes part, and does all of the work when no other can be started.
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
