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
