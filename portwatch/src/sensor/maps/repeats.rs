//! Repeated events, which the BPF programs count instead of reporting while the ring is filling.
#![forbid(unsafe_code)]

use std::{rc::Rc, sync::atomic::Ordering::Relaxed};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, PerCpuArray},
};
use portwatch_common::{RepeatKey, Stats, names, protocol::is_over};

use super::{Plain, map};
use crate::sensor::{SensorError, ring::Shared};

pub(in crate::sensor) struct Repeats {
    control: Rc<Shared>,
    stats: PerCpuArray<MapData, Plain<Stats>>,
    counts: HashMap<MapData, Plain<RepeatKey>, u64>,
    before: Stats,
    /// Counters that the BPF programs started, less those that were taken.
    open: u64,
    epoch: u32,
}

/// What the BPF programs did since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Reports that found the ring full.
    pub lost: u64,
    /// Events that were kept in the table of counted sockets.
    pub kept: u64,
    /// Events for which that table had no room: they were counted.
    pub overflowed: u64,
}

/// The high watermark is half the ring: the first of each repeat, which is reported, must still fit.
const RING_PARTS: u64 = 2;

impl Repeats {
    pub(in crate::sensor) fn new(
        ebpf: &mut Ebpf,
        control: Rc<Shared>,
        ring_size: u32,
    ) -> Result<Self, SensorError> {
        control
            .high_watermark()
            .store(u64::from(ring_size) / RING_PARTS, Relaxed);
        let stats = ebpf.take_map(names::STATS);
        let counts = ebpf.take_map(names::REPEATS);
        Ok(Self {
            control,
            stats: map(stats, names::STATS, PerCpuArray::try_from)?,
            counts: map(counts, names::REPEATS, HashMap::try_from)?,
            before: Stats::default(),
            open: 0,
            epoch: 1,
        })
    }

    /// Whether repeats may be counted from now on.
    pub(in crate::sensor) fn allow(&self, counting: bool) {
        let epoch = if counting { self.epoch } else { 0 };
        self.control.epoch().store(epoch, Relaxed);
    }

    /// Whether the agent is to be woken for the end of a connection.
    pub(in crate::sensor) fn wake_for_sessions(&self, wake: bool) {
        self.control.sessions().store(wake.into(), Relaxed);
    }

    /// What the BPF programs did since the last call.
    pub(in crate::sensor) fn news(&mut self) -> Result<News, SensorError> {
        let slots = self
            .stats
            .get(&0, 0)
            .map_err(|error| SensorError::kernel("reading the counters of reports", &error))?;
        let slots = slots.iter().map(|slot| slot.0);
        let now = slots.fold(Stats::default(), |sum, slot| Stats {
            lost: sum.lost + slot.lost,
            repeats: sum.repeats + slot.repeats,
            counted_sockets: sum.counted_sockets + slot.counted_sockets,
            overflowed: sum.overflowed + slot.overflowed,
        });
        let before = std::mem::replace(&mut self.before, now);
        self.open += now.repeats - before.repeats;
        Ok(News {
            lost: now.lost - before.lost,
            kept: now.counted_sockets - before.counted_sockets,
            overflowed: now.overflowed - before.overflowed,
        })
    }

    /// Whether there are counters to take.
    pub(in crate::sensor) const fn is_counting(&self) -> bool {
        self.open > 0
    }

    /// Takes the counters of the epoch before this one, and begins the next: to be called when no
    /// run of a BPF program can be as old as that.
    pub(in crate::sensor) fn take(&mut self) -> Result<Vec<(RepeatKey, u64)>, SensorError> {
        let current = self.epoch;
        let taken = self.remove(|key| is_over(key.epoch, current))?;
        self.epoch += 1;
        if self.control.epoch().load(Relaxed) != 0 {
            self.allow(true);
        }
        Ok(taken)
    }

    /// Takes all counters: the programs are detached.
    pub(in crate::sensor) fn take_all(&mut self) -> Result<Vec<(RepeatKey, u64)>, SensorError> {
        self.remove(|_| true)
    }

    fn remove(
        &mut self,
        mut is_over: impl FnMut(&RepeatKey) -> bool,
    ) -> Result<Vec<(RepeatKey, u64)>, SensorError> {
        let failed =
            |error: MapError| SensorError::kernel("reading the counters of repeats", &error);
        let keys: Vec<_> = self
            .counts
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let mut taken = Vec::new();
        for key in keys.into_iter().filter(|key| is_over(&key.0)) {
            let count = self.counts.get(&key, 0).map_err(failed)?;
            self.counts.remove(&key).map_err(failed)?;
            self.open = self.open.saturating_sub(1);
            if count > 0 {
                taken.push((key.0, count));
            }
        }
        // What was taken comes before what was left.
        taken.sort_unstable_by_key(|(repeat, _)| repeat.kind);
        Ok(taken)
    }
}
