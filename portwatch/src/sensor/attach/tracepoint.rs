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
        Self::attach_by(load_and_attach, ebpf, registered)
    }

    /// As [`attach`](Self::attach), where programs can no longer be loaded.
    pub(in crate::sensor) fn attach_loaded(ebpf: &mut Ebpf, registered: Vec<Transport>) -> Self {
        Self::attach_by(attach, ebpf, registered)
    }

    fn attach_by(
        attach: fn(&mut Ebpf) -> Result<(), SensorError>,
        ebpf: &mut Ebpf,
        registered: Vec<Transport>,
    ) -> Self {
        if registered.is_empty() {
            return Self::NotNeeded;
        }
        match attach(ebpf) {
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

/// Loads the tracepoint's program, unless it is loaded, and attaches it.
pub(in crate::sensor) fn load_and_attach(ebpf: &mut Ebpf) -> Result<(), SensorError> {
    if let Some(program) = program(ebpf)?
        && program.fd().is_err()
    {
        program
            .load()
            .map_err(|error| SensorError::program(NAME, error))?;
    }
    attach(ebpf)
}

fn attach(ebpf: &mut Ebpf) -> Result<(), SensorError> {
    let Some(program) = program(ebpf)? else {
        return Ok(());
    };
    program
        .attach("sock", NAME)
        .map(drop)
        .map_err(|error| SensorError::attach(NAME, &error))
}

const NAME: &str = names::TRACEPOINT;

fn program(ebpf: &mut Ebpf) -> Result<Option<&mut TracePoint>, SensorError> {
    let program = ebpf.program_mut(NAME).map(TryInto::try_into).transpose();
    program.map_err(|error| SensorError::program(NAME, error))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        sandbox::confine_thread,
        sensor::object::{HostFeatures, OBJECT, load, load_programs},
    };

    #[test]
    fn a_confined_monitor_can_attach_what_it_has_loaded() {
        let loaded = || {
            let (features, loader) = HostFeatures::read();
            let mut ebpf = load(loader, OBJECT, 1 << 12, &features).unwrap();
            load_programs(ebpf.programs_mut()).unwrap();
            ebpf
        };
        // Where tracefs is not mounted, nobody can.
        let anyone = attach(&mut loaded()).map_err(|error| error.to_string());
        let mut ebpf = loaded();
        let confined = thread::spawn(move || {
            confine_thread().unwrap();
            attach(&mut ebpf).map_err(|error| error.to_string())
        });
        assert_eq!(confined.join().unwrap(), anyone);
    }
}
