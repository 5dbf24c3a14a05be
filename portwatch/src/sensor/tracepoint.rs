//! The optional sensor: a tracepoint for SCTP and DCCP. It costs every TCP connection on the host
//! a little, so it is attached only where one of the two is.

use std::fs;

use aya::{Ebpf, programs::TracePoint};
use portwatch_common::names;

use super::SensorError;
use crate::event::Transport;

/// What became of the tracepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracepoint {
    /// This kernel speaks neither protocol now.
    NotNeeded,
    /// Attached, for these.
    Attached(Vec<Transport>),
    /// These are here and not covered, and why.
    Refused(Vec<Transport>, String),
}

impl Tracepoint {
    /// Attaches the tracepoint if there is anything for it to see.
    pub(super) fn attach(ebpf: &mut Ebpf) -> Self {
        let present = present();
        if present.is_empty() {
            return Self::NotNeeded;
        }
        match load_and_attach(ebpf) {
            Ok(()) => Self::Attached(present),
            Err(error) => Self::Refused(present, error.to_string()),
        }
    }

    /// The transports that it adds to what is covered.
    #[must_use]
    pub fn transports(&self) -> &[Transport] {
        match self {
            Self::Attached(transports) => transports,
            Self::NotNeeded | Self::Refused(..) => &[],
        }
    }
}

/// Which of the two protocols this kernel has registered: as `/proc/net/protocols` lists them.
pub(super) fn present() -> Vec<Transport> {
    let protocols = fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    [("SCTP", Transport::Sctp), ("DCCP", Transport::Dccp)]
        .into_iter()
        .filter(|(name, _)| {
            protocols
                .lines()
                .any(|line| line.split_ascii_whitespace().next() == Some(name))
        })
        .map(|(_, transport)| transport)
        .collect()
}

pub(super) fn load_and_attach(ebpf: &mut Ebpf) -> Result<(), SensorError> {
    const NAME: &str = names::TRACEPOINT;
    let Some(program) = ebpf.program_mut(NAME) else {
        return Ok(());
    };
    let program: &mut TracePoint = program
        .try_into()
        .map_err(|error| SensorError::program(NAME, error))?;
    program
        .load()
        .map_err(|error| SensorError::program(NAME, error))?;
    program
        .attach("sock", NAME)
        .map(drop)
        .map_err(|error| SensorError::attach(NAME, &error))
}
