//! Repeated events, which the BPF programs count instead of reporting while the ring is filling.
#![forbid(unsafe_code)]

use std::{io, rc::Rc, sync::atomic::Ordering::Relaxed};

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
    may_count: bool,
    high_watermark: u64,
    wakes_for_sessions: bool,
    /// Whether a counter was less than before: nobody but another hand does that.
    is_changed: bool,
    /// How many counters there were and how many there should be, where that differs.
    suspicion: Option<(u64, u64)>,
    /// How many more marked sockets the word has than the CPUs have counted, by another hand.
    surplus: u64,
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

/// How often two counts of the same must differ by the same to be called different.
const ATTEMPTS: usize = 4;

impl Repeats {
    pub(in crate::sensor) fn new(
        ebpf: &mut Ebpf,
        control: Rc<Shared>,
        ring_size: u32,
    ) -> Result<Self, SensorError> {
        let high_watermark = u64::from(ring_size) / RING_PARTS;
        control.high_watermark().store(high_watermark, Relaxed);
        let stats = ebpf.take_map(names::STATS);
        let counts = ebpf.take_map(names::REPEATS);
        let mut repeats = Self {
            control,
            stats: map(stats, names::STATS, PerCpuArray::try_from)?,
            counts: map(counts, names::REPEATS, HashMap::try_from)?,
            before: Stats::default(),
            open: 0,
            epoch: 1,
            may_count: false,
            high_watermark,
            wakes_for_sessions: false,
            is_changed: false,
            suspicion: None,
            surplus: 0,
        };
        // How many CPUs there are is read from /sys, once: without it nothing is armed, rather than
        // ended by the first event.
        repeats.before = repeats.sum().map_err(|error| {
            let why = io::Error::other(format!("{error} (is /sys mounted?)"));
            SensorError::kernel("counting the processors", &why)
        })?;
        Ok(repeats)
    }

    /// Whether repeats may be counted from now on.
    pub(in crate::sensor) fn allow(&mut self, counting: bool) {
        self.may_count = counting;
        self.control.epoch().store(self.expected_epoch(), Relaxed);
    }

    const fn expected_epoch(&self) -> u32 {
        if self.may_count { self.epoch } else { 0 }
    }

    /// Whether the agent is to be woken for the end of a connection.
    pub(in crate::sensor) fn wake_for_sessions(&mut self, wake: bool) {
        self.wakes_for_sessions = wake;
        self.control.sessions().store(wake.into(), Relaxed);
    }

    /// What the BPF programs did since the last call.
    pub(in crate::sensor) fn news(&mut self) -> Result<News, SensorError> {
        let now = self.sum()?;
        let before = std::mem::replace(&mut self.before, now);
        let mut is_changed = false;
        let mut since = |now: u64, before: u64| {
            is_changed |= now < before;
            now.saturating_sub(before)
        };
        self.open += since(now.repeats, before.repeats);
        let news = News {
            lost: since(now.lost, before.lost),
            kept: since(now.counted_sockets, before.counted_sockets),
            overflowed: since(now.overflowed, before.overflowed),
        };
        self.is_changed |= is_changed;
        Ok(news)
    }

    /// The counters of all CPUs.
    fn sum(&self) -> Result<Stats, SensorError> {
        let slots = self
            .stats
            .get(&0, 0)
            .map_err(|error| SensorError::kernel("reading the counters of reports", &error))?;
        let slots = slots.iter().map(|slot| slot.0);
        // Wrapping, since others can have written anything there.
        Ok(slots.fold(Stats::default(), |sum, slot| Stats {
            lost: sum.lost.wrapping_add(slot.lost),
            repeats: sum.repeats.wrapping_add(slot.repeats),
            counted_sockets: sum.counted_sockets.wrapping_add(slot.counted_sockets),
            overflowed: sum.overflowed.wrapping_add(slot.overflowed),
            submitted: sum.submitted.wrapping_add(slot.submitted),
            marked_sockets: sum.marked_sockets.wrapping_add(slot.marked_sockets),
        }))
    }

    /// Reports that were put into the ring, as of the last [`news`](Self::news).
    pub(in crate::sensor) const fn submitted(&self) -> u64 {
        self.before.submitted
    }

    /// The same, as of now.
    pub(in crate::sensor) fn submitted_now(&self) -> Result<u64, SensorError> {
        Ok(self.sum()?.submitted)
    }

    /// Puts back what the BPF programs are to read. Which words and maps were changed by another hand.
    /// `marked` is what the agent added to the number of marked sockets.
    pub(in crate::sensor) fn restore(
        &mut self,
        marked: u64,
    ) -> Result<Vec<&'static str>, SensorError> {
        let mut changed = Vec::new();
        if std::mem::take(&mut self.is_changed) {
            changed.push("STATS");
        }
        let watermark = self.control.high_watermark();
        if watermark.swap(self.high_watermark, Relaxed) != self.high_watermark {
            changed.push("CONTROL, high_watermark");
        }
        let epoch = self.expected_epoch();
        if self.control.epoch().swap(epoch, Relaxed) != epoch {
            changed.push("CONTROL, epoch");
        }
        let sessions = self.wakes_for_sessions.into();
        if self.control.sessions().swap(sessions, Relaxed) != sessions {
            changed.push("CONTROL, sessions");
        }
        if self.restore_marked_sockets(marked)? {
            changed.push("CONTROL, marked_sockets");
        }
        if self.has_other_counters()? {
            changed.push("REPEATS");
        }
        Ok(changed)
    }

    /// The BPF programs count marked sockets twice: in the word that spares closes the look-up, and by
    /// CPU.
    fn restore_marked_sockets(&mut self, marked: u64) -> Result<bool, SensorError> {
        let mut differs_by = None;
        // A program can be between the two.
        for _ in 0..ATTEMPTS {
            let word = self.control.marked_sockets().load(Relaxed);
            let counted = self.sum()?.marked_sockets.wrapping_add(marked);
            let expected = counted.wrapping_add(self.surplus);
            let difference = expected.wrapping_sub(word);
            if difference == 0 {
                return Ok(false);
            }
            if differs_by.is_some_and(|before| before != difference) {
                return Ok(false);
            }
            differs_by = Some(difference);
        }
        match differs_by {
            Some(difference) if difference <= u64::MAX / 2 => {
                self.control.marked_sockets().fetch_add(difference, Relaxed);
            }
            // Too high only costs time, and which of the two is right is unknown.
            Some(difference) => self.surplus = self.surplus.wrapping_sub(difference),
            None => {}
        }
        Ok(true)
    }

    /// Whether the table has more or fewer counters than were started, at two checks in a row: a
    /// program can be about to add one.
    fn has_other_counters(&mut self) -> Result<bool, SensorError> {
        let failed =
            |error: MapError| SensorError::kernel("reading the counters of repeats", &error);
        let started = self.sum()?.repeats.wrapping_sub(self.before.repeats);
        let expected = self.open.wrapping_add(started);
        let mut found = 0;
        for key in self.counts.keys() {
            key.map_err(failed)?;
            found += 1;
        }
        let before = self.suspicion.take();
        if found == expected {
            return Ok(false);
        }
        if before != Some((found, expected)) {
            self.suspicion = Some((found, expected));
            return Ok(false);
        }
        self.open = found.saturating_sub(started);
        Ok(true)
    }

    /// Whether there are counters to take.
    pub(in crate::sensor) const fn is_counting(&self) -> bool {
        self.open > 0
    }

    /// Takes the counters of the epoch before this one, and begins the next: to be called when no
    /// run of a BPF program can be as old as that.
    pub(in crate::sensor) fn take(&mut self) -> Result<Vec<(RepeatKey, u64)>, SensorError> {
        let current = self.epoch;
        // Of a later one: another hand wrote the word.
        let taken = self.remove(|key| is_over(key.epoch, current) || key.epoch > current)?;
        self.epoch += 1;
        self.allow(self.may_count);
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
