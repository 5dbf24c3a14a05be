//! Where the programs are attached.

mod before_bind;
mod cgroup;
mod health;
mod hooks;
mod pin;
pub(super) mod tracepoint;

use std::{collections::HashMap, os::fd::AsFd};

use aya::programs::{
    CgroupAttachMode, Program, ProgramError,
    links::{FdLink, LinkError},
};

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

/// The links of the programs that have no pin, by name. The one before goes when a program is attached
/// again: although it is detached, its descriptor would stay open.
#[derive(Default)]
pub(super) struct Links(HashMap<String, FdLink>);

impl Links {
    /// Detaches a program.
    fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }
}

/// Attaches one of the object's programs: with a pin, if it denies and there are `pins`, otherwise
/// for as long as `links` lives.
pub(super) fn attach_program(
    name: &str,
    program: &mut Program,
    cgroup: impl AsFd,
    pins: Option<&mut Pins>,
    links: &mut Links,
) -> Result<(), SensorError> {
    let link = link(name, program, cgroup)?;
    let denying = PROGRAMS.into_iter().find(|denying| *denying == name);
    match denying.zip(pins) {
        Some((name, pins)) => pins.replace(name, link),
        None => {
            links.0.insert(name.to_owned(), link);
            Ok(())
        }
    }
}

/// Attaches a program for as long as the link lives.
fn link(name: &str, program: &mut Program, cgroup: impl AsFd) -> Result<FdLink, SensorError> {
    /// A link is multi-attach by nature; the kernel rejects any other mode's flags.
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    let failed = |error| SensorError::attach(name, &error);
    let link = match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, MODE).map_err(failed)?;
            program.take_link(id).map_err(failed)?.try_into()
        }
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, MODE).map_err(failed)?;
            program.take_link(id).map_err(failed)?.try_into()
        }
        Program::SockOps(program) => {
            let id = program.attach(cgroup, MODE).map_err(failed)?;
            program.take_link(id).map_err(failed)?.try_into()
        }
        _ => return Err(failed(ProgramError::UnexpectedProgramType)),
    };
    // Before Linux 5.7 it is none with a descriptor.
    link.map_err(|error: LinkError| SensorError::kernel("attaching the programs", &error))
}
