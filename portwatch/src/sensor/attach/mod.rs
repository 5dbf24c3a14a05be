//! Where the programs are attached.

mod cgroup;
mod health;
mod hooks;
mod pin;
pub(super) mod tracepoint;

use std::os::fd::AsFd;

use aya::programs::{CgroupAttachMode, Program, ProgramError};

pub(super) use self::{
    cgroup::Cgroup,
    hooks::{HOOKS, attached},
    pin::{PROGRAMS, attach as attach_pinned},
};
pub use self::{
    health::Health,
    pin::{is_pinned, unpin},
    tracepoint::Tracepoint,
};

/// Attaches one of the object's programs for as long as the object lives.
pub(super) fn attach_program(program: &mut Program, cgroup: impl AsFd) -> Result<(), ProgramError> {
    // A link is multi-attach by nature; the kernel rejects any other mode's flags.
    let mode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSock(program) => program.attach(cgroup, mode).map(drop),
        Program::SockOps(program) => program.attach(cgroup, mode).map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
