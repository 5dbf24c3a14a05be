//! Whether the maps and the ring are as the agent left them. Whoever may open a map by its id can
//! write to it, and then events are missed without any other sign.
#![forbid(unsafe_code)]

use super::{Health, Sensor, SensorError, maps::watched};

/// What was noticed and not reported yet.
#[derive(Default)]
pub(super) struct Integrity {
    /// Whether a position of the ring was changed.
    pub(super) is_ring_changed: bool,
    /// Whether more reports came than the BPF programs counted.
    has_surplus: bool,
    /// Why the maps could not be compared at the last check.
    error: Option<String>,
}

impl Sensor {
    /// Compares the maps with what they should be, and puts back what was changed by another hand.
    /// Returns each change.
    pub(super) fn restore_maps(&mut self) -> Vec<Health> {
        let mut changed = Vec::new();
        self.integrity.is_ring_changed |= self.wake.positions().restore();
        if std::mem::take(&mut self.integrity.is_ring_changed) {
            changed.push("the position in the map RING was changed".to_owned());
        }
        if self.wake.restore() {
            changed.push("the map CONTROL, polling, was changed".to_owned());
        }
        let outcome = self.restore_contents(&mut changed);
        if std::mem::take(&mut self.integrity.has_surplus) {
            changed.push("the map RING has more reports than the map STATS".to_owned());
        }
        let mut changes: Vec<Health> = changed
            .into_iter()
            .map(|what| Health {
                regained: false,
                detail: format!("{what} by another program: put back"),
            })
            .collect();
        // Each of them once.
        let error = outcome.err().map(|error| error.to_string());
        if error != self.integrity.error {
            changes.extend(error.iter().map(|error| Health {
                regained: false,
                detail: format!("the maps cannot be compared or put back: {error}"),
            }));
            self.integrity.error = error;
        }
        changes
    }

    fn restore_contents(&mut self, changed: &mut Vec<String>) -> Result<(), SensorError> {
        for map in self.repeats.restore(self.marks.marked())? {
            changed.push(format!("the map {map}, was changed"));
        }
        let Some(ebpf) = &mut self.ebpf else {
            return Ok(());
        };
        let ports = watched::restore(ebpf, &self.watched)?;
        if let Some(first) = ports.first() {
            let count = ports.len();
            changed.push(format!(
                "the map WATCHED was changed (ports: {count}, the first {first})"
            ));
        }
        Ok(())
    }

    /// Reports that were put into the ring and did not come out of it: `submitted`, read after the
    /// producer's position was `produced`, less what was taken. 0 while the ring is not empty.
    pub(super) fn missing_reports(
        &mut self,
        produced: usize,
        submitted: u64,
    ) -> Result<u64, SensorError> {
        let is_whole = |sensor: &mut Self| {
            let positions = sensor.wake.positions();
            positions.is_read_up_to(produced) && positions.produced() == produced
        };
        if !is_whole(self) || submitted == self.taken {
            return Ok(0);
        }
        // Once more: another CPU's counter can come into sight after its report.
        let submitted = self.repeats.submitted_now()?;
        if !is_whole(self) || submitted == self.taken {
            return Ok(0);
        }
        let missing = submitted.wrapping_sub(self.taken);
        self.taken = submitted;
        if missing > u64::MAX / 2 {
            self.integrity.has_surplus = true;
            return Ok(0);
        }
        Ok(missing)
    }
}
