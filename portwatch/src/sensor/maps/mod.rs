//! The maps that the agent and the BPF programs share.

pub(super) mod batch;
pub(super) mod counted;
pub(super) mod deny;
pub(super) mod marks;
pub(super) mod repeats;
pub(super) mod watched;

use std::io;

use aya::Pod;

use super::SensorError;

/// A value of the BPF programs' own types, for aya's `Pod`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(in crate::sensor) struct Plain<T>(pub(in crate::sensor) T);

// SAFETY: a transparent wrapper of a `bytemuck::Pod`, which has no padding and takes any bytes.
unsafe impl<T: bytemuck::Pod> Pod for Plain<T> {}

/// Converts a map of the object, if it has one, to the type that it is.
pub(in crate::sensor) fn map<M, T, E: std::error::Error>(
    map: Option<M>,
    name: &str,
    convert: impl FnOnce(M) -> Result<T, E>,
) -> Result<T, SensorError> {
    let map = map.ok_or_else(|| {
        SensorError::kernel(
            "the eBPF object",
            &io::Error::other(format!("has no map {name}")),
        )
    })?;
    convert(map).map_err(|error| SensorError::kernel(&format!("the map {name}"), &error))
}
