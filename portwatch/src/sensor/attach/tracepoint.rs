//! The optional sensor: a tracepoint for SCTP and DCCP. It costs every TCP connection on the host
//! a little, so it is attached only where one of the two is.
#![forbid(unsafe_code)]

use aya::{Ebpf, programs::TracePoint};
use portwatch_common::names;

use crate::{linux::protocols, model::Transport, sensor::SensorError};

/// What became of the tracepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracepoint {
    /// This kernel speaks neither protocol now.
    NotNeeded,
    /// Attached, for these.
    Attached(Vec<Transport>),
    /// These are here and not covered, and why.
    Rejected(Vec<Transport>, String),
}

impl Tracepoint {
    /// Attaches the tracepoint if there is anything for it to see.
    pub(in crate::sensor) fn attach(ebpf: &mut Ebpf, registered: Vec<Transport>) -> Self {
        if registered.is_empty() {
            return Self::NotNeeded;
        }
        match load_and_attach(ebpf) {
            Ok(()) => Self::Attached(registered),
            Err(error) => Self::Rejected(registered, error.to_string()),
        }
    }

    /// The transports that it adds to what is covered.
    #[must_use]
    pub fn transports(&self) -> &[Transport] {
        match self {
            Self::Attached(transports) => transports,
            Self::NotNeeded | Self::Rejected(..) => &[],
        }
    }
}

/// Which of the two protocols this kernel has registered.
pub(in crate::sensor) fn registered() -> Vec<Transport> {
    let mut transports = protocols::registered();
    transports.retain(|transport| matches!(transport, Transport::Sctp | Transport::Dccp));
    transports
}

pub(in crate::sensor) fn load_and_attach(ebpf: &mut Ebpf) -> Result<(), SensorError> {
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
