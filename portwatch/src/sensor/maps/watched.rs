//! The watched ports.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use portwatch_common::{SYSTEM_PORTS, names, watch_bit};

use super::map;
use crate::{model::Transport, sensor::SensorError};

/// The [`watch_bit`]s of each port.
pub(in crate::sensor) type Watched = BTreeMap<u16, u32>;

/// Sets which (port, transport) is reported, where that differs from `before`.
pub(in crate::sensor) fn fill(
    ebpf: &mut Ebpf,
    before: &Watched,
    watched: impl Iterator<Item = (u16, Transport)>,
) -> Result<Watched, SensorError> {
    let mut now = Watched::new();
    for (port, transport) in watched {
        *now.entry(port).or_default() |= watch_bit(transport.protocol());
    }
    let mut map: Array<&mut MapData, u32> = map(
        ebpf.map_mut(names::WATCHED),
        names::WATCHED,
        Array::try_from,
    )?;
    for port in 0..SYSTEM_PORTS as u16 {
        let [before, now] = [before, &now].map(|bits| bits.get(&port).copied().unwrap_or(0));
        if before != now {
            map.set(port.into(), now, 0)
                .map_err(|error| SensorError::kernel("the watched ports", &error))?;
        }
    }
    Ok(now)
}

/// Puts each entry of the map back that is not what the agent wrote. The ports whose entry was
/// changed by another hand.
pub(in crate::sensor) fn restore(
    ebpf: &mut Ebpf,
    watched: &Watched,
) -> Result<Vec<u16>, SensorError> {
    let failed = |error| SensorError::kernel("the watched ports", &error);
    let mut map: Array<&mut MapData, u32> = map(
        ebpf.map_mut(names::WATCHED),
        names::WATCHED,
        Array::try_from,
    )?;
    let mut changed = Vec::new();
    for port in 0..SYSTEM_PORTS as u16 {
        let expected = watched.get(&port).copied().unwrap_or(0);
        if map.get(&port.into(), 0).map_err(failed)? != expected {
            map.set(port.into(), expected, 0).map_err(failed)?;
            changed.push(port);
        }
    }
    Ok(changed)
}
