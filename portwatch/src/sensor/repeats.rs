//! What repeats itself while the ring is filling, which the kernel side counts instead of reporting it.

use std::{rc::Rc, sync::atomic::Ordering::Relaxed};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, PerCpuArray},
};
use portwatch_common::{Repeat, Tally, names};

use super::{
    SensorError,
    control::Shared,
    load::{Plain, map},
};

pub(super) struct Repeats {
    control: Rc<Shared>,
    tally: PerCpuArray<MapData, Plain<Tally>>,
    counts: HashMap<MapData, Plain<Repeat>, u64>,
    before: Tally,
    /// Counters that the kernel side began, less those that were taken.
    open: u64,
    epoch: u32,
}

/// From half a ring on: what is not counted, the first of each repeat, must still fit.
const PRESSURE: u64 = 2;

impl Repeats {
    pub(super) fn of(
        ebpf: &mut Ebpf,
        control: Rc<Shared>,
        ring_size: u32,
    ) -> Result<Self, SensorError> {
        control
            .pressure()
            .store(u64::from(ring_size) / PRESSURE, Relaxed);
        let tally = ebpf.take_map(names::TALLY);
        let counts = ebpf.take_map(names::REPEATS);
        Ok(Self {
            control,
            tally: map(tally, names::TALLY, PerCpuArray::try_from)?,
            counts: map(counts, names::REPEATS, HashMap::try_from)?,
            before: Tally::default(),
            open: 0,
            epoch: 1,
        })
    }

    /// Whether repeats may be counted from now on.
    pub(super) fn allow(&self, counting: bool) {
        let epoch = if counting { self.epoch } else { 0 };
        self.control.epoch().store(epoch, Relaxed);
    }

    /// How many reports found the ring full since the last call.
    pub(super) fn newly_lost(&mut self) -> Result<u64, SensorError> {
        let slots = self
            .tally
            .get(&0, 0)
            .map_err(|error| SensorError::kernel("reading the counters of reports", &error))?;
        let slots = slots.iter().map(|slot| slot.0);
        let now = slots.fold(Tally::default(), |sum, slot| Tally {
            lost: sum.lost + slot.lost,
            repeats: sum.repeats + slot.repeats,
        });
        let before = std::mem::replace(&mut self.before, now);
        self.open += now.repeats - before.repeats;
        Ok(now.lost - before.lost)
    }

    /// Whether there are counters to take.
    pub(super) const fn is_counting(&self) -> bool {
        self.open > 0
    }

    /// Takes the counters of the epoch before this one, and begins the next: to be called when no
    /// run of the kernel side can be as old as that.
    pub(super) fn take(&mut self) -> Result<Vec<(Repeat, u64)>, SensorError> {
        let before = self.epoch - 1;
        let taken = self.remove(|repeat| repeat.epoch <= before)?;
        self.epoch += 1;
        if self.control.epoch().load(Relaxed) != 0 {
            self.allow(true);
        }
        Ok(taken)
    }

    /// Takes all counters: the kernel side is detached.
    pub(super) fn take_all(&mut self) -> Result<Vec<(Repeat, u64)>, SensorError> {
        self.remove(|_| true)
    }

    fn remove(
        &mut self,
        mut is_over: impl FnMut(&Repeat) -> bool,
    ) -> Result<Vec<(Repeat, u64)>, SensorError> {
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
