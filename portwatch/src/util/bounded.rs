//! A map that holds no more than it is told to.

use std::hash::Hash;

use lru::LruCache;

/// A map that forgets what was used longest ago when it is full.
#[derive(Debug)]
pub struct Bounded<K: Hash + Eq, V> {
    /// Bounded by this map alone: given a bound, the crate allocates for all of it at once.
    entries: LruCache<K, V>,
    most: usize,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    /// An empty one that holds at most that many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            entries: LruCache::unbounded(),
            most,
        }
    }

    /// What is there by that key, which counts as a use.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// As [`get`](Self::get), to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    /// Puts it there instead of what was there.
    pub fn put(&mut self, key: K, value: V) {
        self.entries.put(key, value);
        if self.entries.len() > self.most {
            self.entries.pop_lru();
        }
    }

    /// What is there by that key, made by `make` where nothing was. A bound of 0 counts as 1.
    pub fn get_or_insert_mut(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains(&key) && self.entries.len() >= self.most {
            self.entries.pop_lru();
        }
        self.entries.get_or_insert_mut(key, make)
    }

    /// Takes out what is there by that key.
    pub fn pop(&mut self, key: &K) -> Option<V> {
        self.entries.pop(key)
    }

    /// All values, in no order.
    pub fn into_values(self) -> impl Iterator<Item = V> {
        self.entries.into_iter().map(|(_, value)| value)
    }

    /// How many are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut map = Bounded::new(2);
        map.put(1, 'a');
        map.put(2, 'b');
        assert_eq!(map.get(&1), Some(&'a'));
        map.put(3, 'c');
        assert_eq!((map.len(), map.get(&2)), (2, None));
        *map.get_or_insert_mut(1, || 'x') = 'd';
        assert_eq!(map.get_or_insert_mut(4, || 'e'), &'e');
        assert_eq!((map.len(), map.get(&3)), (2, None));
        assert_eq!(map.pop(&1), Some('d'));
    }
}
