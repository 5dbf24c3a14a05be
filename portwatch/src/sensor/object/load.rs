//! Loads the eBPF object.
#![forbid(unsafe_code)]

use std::{io, thread};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};
use portwatch_common::names;

use super::HostFeatures;
use crate::sensor::SensorError;

/// Loads the programs, at once: most of the agent's start is the kernel's verifier, and nothing keeps it
/// from verifying several.
pub(in crate::sensor) fn load_programs<'a>(
    programs: impl Iterator<Item = (&'a str, &'a mut Program)>,
) -> Result<(), SensorError> {
    thread::scope(|scope| {
        let loading: Vec<_> = programs
            .map(|(name, program)| (name, scope.spawn(|| load_program(program))))
            .collect();
        for (name, loading) in loading {
            // The optional one: what is in its way is reported when it is needed.
            if name == names::TRACEPOINT {
                continue;
            }
            let loaded = loading
                .join()
                .map_err(|_| SensorError::kernel(name, &io::Error::other("loading it failed")))?;
            loaded.map_err(|error| SensorError::program(name, error))?;
        }
        Ok(())
    })
}

/// Loads one of the object's programs.
pub(in crate::sensor) fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Creates the object's maps, with the branches that this host's features rule out switched off.
pub(in crate::sensor) fn load(
    loader: EbpfLoader<'_>,
    object: &[u8],
    ring_size: u32,
    features: &HostFeatures,
) -> Result<Ebpf, SensorError> {
    let [task, netns] = [features.helpers.task, features.helpers.netns].map(u8::from);
    let offsets = features.offsets();
    // Its globals are borrowed from here.
    let mut loader = loader;
    loader
        .override_global(names::SOCK_OPS_TASK, &task, true)
        .override_global(names::SOCK_OPS_NETNS, &netns, true)
        .override_global(names::KERNEL_OFFSETS, bytemuck::bytes_of(&offsets), true)
        .map_max_entries(names::RING, ring_size)
        .load(object)
        .map_err(|error| SensorError::object(&error))
}
