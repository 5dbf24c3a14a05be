//! What the program may cost where it looks at packets for other ports.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, PerCpuArray},
};
use portwatch_common::names;

use super::{Receive, path};
use crate::{
    linux::cgroup::open_by_id,
    model::Printable,
    sensor::{Health, SensorError, maps::map},
};

/// How long it stays off a busy cgroup, before it is put back to look again.
const OFF: Duration = Duration::from_secs(10);

/// Between two looks at the rate, at least.
const PERIOD: Duration = Duration::from_millis(500);

pub(super) struct Budget {
    unwatched: PerCpuArray<MapData, u64>,
    busy: HashMap<MapData, u64, u64>,
    /// When the counter was read last, and what it was.
    last: Option<(Instant, u64)>,
}

impl Budget {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        let unwatched = ebpf.take_map(names::UNWATCHED_PACKETS);
        let busy = ebpf.take_map(names::BUSY_CGROUPS);
        Ok(Self {
            unwatched: map(unwatched, names::UNWATCHED_PACKETS, PerCpuArray::try_from)?,
            busy: map(busy, names::BUSY_CGROUPS, HashMap::try_from)?,
            last: None,
        })
    }

    /// Packets a second since the last call; None where that was just now.
    fn rate(&mut self, now: Instant) -> Option<u64> {
        let counts = self.unwatched.get(&0, 0).ok()?;
        let count: u64 = counts.iter().sum();
        let Some((at, before)) = self.last else {
            self.last = Some((now, count));
            return None;
        };
        let elapsed = now - at;
        if elapsed < PERIOD {
            return None;
        }
        self.last = Some((now, count));
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        Some(count.saturating_sub(before).saturating_mul(1000) / millis.max(1))
    }

    /// The paths of the cgroups with such packets, and a sample of how many since the last call.
    fn take_busy(&mut self, root: &File) -> Vec<(PathBuf, u64)> {
        let ids: Vec<u64> = self.busy.keys().filter_map(Result::ok).collect();
        let mut busy = Vec::new();
        for id in ids {
            let count = self.busy.get(&id, 0).unwrap_or(0);
            let _ = self.busy.remove(&id);
            let directory = open_by_id(root, id);
            let path = directory.and_then(|directory| path(&directory));
            busy.extend(path.map(|path| (path, count)));
        }
        busy
    }
}

impl Receive {
    /// Takes the program off the busiest cgroup while it looks at more packets than it may, and puts it
    /// back from time to time.
    pub(super) fn keep_to_budget(&mut self, ebpf: &mut Ebpf, now: Instant) -> Vec<Health> {
        let mut changes = Vec::new();
        if self.cgroups.is_empty() {
            self.budget.last = None;
            return changes;
        }
        let rate = self.budget.rate(now);
        if let Some(rate) = rate.filter(|rate| *rate > self.settings.max_rate) {
            changes.extend(self.take_off_busiest(rate, now));
        } else if rate.is_some() {
            changes.extend(self.find_calm());
        }
        for cgroup in self.cgroups.values_mut() {
            cgroup.off_until = cgroup.off_until.filter(|until| *until > now);
        }
        // What cannot be attached is reported by the next check.
        let _ = self.align(ebpf);
        changes
    }

    fn take_off_busiest(&mut self, rate: u64, now: Instant) -> Option<Health> {
        let busy = self.budget.take_busy(self.root.as_ref()?);
        let attached = self.cgroups.values_mut().filter(|one| one.link.is_some());
        let busiest = attached.max_by_key(|cgroup| {
            // The program sees what is below, too.
            let within = busy.iter().filter(|(at, _)| at.starts_with(&cgroup.path));
            within.map(|(_, count)| count).sum::<u64>()
        })?;
        busiest.off_until = Some(now + OFF);
        let is_new = !std::mem::replace(&mut busiest.is_off_reported, true);
        let path = Printable::from_bytes(busiest.path.as_os_str().as_encoded_bytes());
        is_new.then(|| Health {
            regained: false,
            detail: format!(
                "the datagrams of sockets in {path} are seen only from time to time: {rate} packets a \
                 second for other sockets there (see max_rate in [receive])"
            ),
        })
    }

    /// Those that were put back, and are not too busy.
    fn find_calm(&mut self) -> Vec<Health> {
        let mut changes = Vec::new();
        for cgroup in self.cgroups.values_mut() {
            if cgroup.off_until.is_none() && std::mem::take(&mut cgroup.is_off_reported) {
                let path = Printable::from_bytes(cgroup.path.as_os_str().as_encoded_bytes());
                changes.push(Health {
                    regained: true,
                    detail: format!("the datagrams of sockets in {path} are seen again"),
                });
            }
        }
        changes
    }
}
