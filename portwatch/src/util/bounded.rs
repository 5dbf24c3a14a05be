//! Maps with a limit, by number or by bytes.

use std::hash::Hash;

use lru::LruCache;

/// A map that evicts what was used longest ago when it is full.
#[derive(Debug)]
pub struct Bounded<K: Hash + Eq, V> {
    /// Without a capacity of its own, for which the crate would allocate at once.
    entries: LruCache<K, V>,
    max: usize,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    /// An empty map of at most `max` entries.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            entries: LruCache::unbounded(),
            max,
        }
    }

    /// The value of `key`; counts as a use.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// As [`get`](Self::get), mutable.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    /// Inserts or replaces the value of `key`.
    pub fn put(&mut self, key: K, value: V) {
        self.entries.put(key, value);
        if self.entries.len() > self.max {
            self.entries.pop_lru();
        }
    }

    /// The value of `key`, inserted by `make` when missing. A limit of 0 counts as 1.
    pub fn get_or_insert_mut(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains(&key) && self.entries.len() >= self.max {
            self.entries.pop_lru();
        }
        self.entries.get_or_insert_mut(key, make)
    }

    /// Removes the value that [`get_or_insert_mut`](Self::get_or_insert_mut) of `key` would evict.
    pub fn make_room(&mut self, key: &K) -> Option<V> {
        let is_full = !self.entries.contains(key) && self.entries.len() >= self.max;
        let (_, evicted) = is_full.then(|| self.entries.pop_lru())??;
        Some(evicted)
    }

    /// Removes the value of `key`.
    pub fn pop(&mut self, key: &K) -> Option<V> {
        self.entries.pop(key)
    }

    /// All values, in no order.
    pub fn into_values(self) -> impl Iterator<Item = V> {
        self.entries.into_iter().map(|(_, value)| value)
    }
}

/// A map that evicts what was used longest ago once its values take more bytes than a limit.
#[derive(Debug)]
pub struct ByteBounded<K: Hash + Eq, V> {
    /// Each value with the bytes that it was counted with.
    entries: LruCache<K, (V, usize)>,
    bytes: usize,
    max_bytes: usize,
}

impl<K: Hash + Eq, V> ByteBounded<K, V> {
    /// An empty map whose values take at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            entries: LruCache::unbounded(),
            bytes: 0,
            max_bytes,
        }
    }

    /// The value of `key`; counts as a use.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// As [`get`](Self::get), mutable. Call [`resize`](Self::resize) when the value's size changes.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(value, _)| value)
    }

    /// Inserts or replaces a value that takes `bytes`. One that exceeds the limit alone is not kept.
    pub fn put(&mut self, key: K, value: V, bytes: usize) {
        if let Some((_, old)) = self.entries.put(key, (value, bytes)) {
            self.bytes -= old;
        }
        self.bytes += bytes;
        self.evict();
    }

    /// Counts the value of `key` with `bytes` from now on.
    pub fn resize(&mut self, key: &K, bytes: usize) {
        if let Some((_, counted)) = self.entries.get_mut(key) {
            self.bytes = self.bytes - *counted + bytes;
            *counted = bytes;
            self.evict();
        }
    }

    fn evict(&mut self) {
        while self.bytes > self.max_bytes
            && let Some((_, (_, bytes))) = self.entries.pop_lru()
        {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_entry_is_evicted() {
        let mut map = Bounded::new(2);
        map.put(1, 'a');
        map.put(2, 'b');
        assert_eq!(map.get(&1), Some(&'a'));
        map.put(3, 'c');
        assert_eq!((map.entries.len(), map.get(&2)), (2, None));
        *map.get_or_insert_mut(1, || 'x') = 'd';
        assert_eq!(map.get_or_insert_mut(4, || 'e'), &'e');
        assert_eq!((map.entries.len(), map.get(&3)), (2, None));
        assert_eq!(map.pop(&1), Some('d'));
    }

    #[test]
    fn values_are_evicted_by_their_bytes() {
        let mut map = ByteBounded::new(10);
        map.put(1, 'a', 4);
        map.put(2, 'b', 4);
        assert_eq!(map.get(&1), Some(&'a'));
        map.put(3, 'c', 6);
        assert_eq!(
            [1, 2, 3].map(|key| map.get(&key).copied()),
            [Some('a'), None, Some('c')]
        );
        map.put(3, 'd', 2);
        map.put(4, 'e', 4);
        assert_eq!(
            [1, 3, 4].map(|key| map.get(&key).copied()),
            [Some('a'), Some('d'), Some('e')]
        );
        map.resize(&4, 7);
        assert_eq!(
            [1, 3, 4].map(|key| map.get(&key).copied()),
            [None, Some('d'), Some('e')]
        );
        map.put(5, 'f', 11);
        assert_eq!([3, 4, 5].map(|key| map.get(&key).copied()), [None; 3]);
    }
}
