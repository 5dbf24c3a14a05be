//! Where the programs are attached.

mod before_bind;
mod cgroup;
mod health;
mod hooks;
mod pin;
pub(super) mod tracepoint;

use std::os::fd::AsFd;

use aya::programs::{CgroupAttachMode, Program, ProgramError};

use crate::sensor::SensorError;

use self::pin::PROGRAMS;
pub(super) use self::{
    before_bind::BeforeBind,
    cgroup::Cgroup,
    hooks::{HOOKS, attached},
    pin::Pins,
};
pub use self::{
    health::Health,
    pin::{is_pinned, unpin},
    tracepoint::Tracepoint,
};

/// Attaches one of the object's programs: with a pin, if it denies and there are `pins`, otherwise
/// for as long as the object lives.
pub(super) fn attach_program(
    name: &str,
    program: &mut Program,
    cgroup: impl AsFd,
    pins: Option<&mut Pins>,
) -> Result<(), SensorError> {
    let denying = PROGRAMS.into_iter().find(|denying| *denying == name);
    if let Some((name, pins)) = denying.zip(pins) {
        return pins.attach(name, program, cgroup);
    }
    attach_for_now(program, cgroup).map_err(|error| SensorError::attach(name, &error))
}

/// A link is multi-attach by nature; the kernel rejects any other mode's flags.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

fn attach_for_now(program: &mut Program, cgroup: impl AsFd) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.attach(cgroup, MODE).map(drop),
        Program::CgroupSock(program) => program.attach(cgroup, MODE).map(drop),
        Program::SockOps(program) => program.attach(cgroup, MODE).map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
