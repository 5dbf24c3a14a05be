//! Where the programs are attached.

mod before_bind;
mod cgroup;
mod health;
mod hooks;
mod pin;
pub(super) mod tracepoint;

use std::{any::Any, collections::HashMap, os::fd::AsFd};

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

/// The links of the programs that have no pin, by name. The one before goes when a program is attached
/// again: although it is detached, its descriptor would stay open.
#[derive(Default)]
pub(super) struct Links(HashMap<String, Box<dyn Any>>);

/// Attaches one of the object's programs: with a pin, if it denies and there are `pins`, otherwise
/// for as long as `links` lives.
pub(super) fn attach_program(
    name: &str,
    program: &mut Program,
    cgroup: impl AsFd,
    pins: Option<&mut Pins>,
    links: &mut Links,
) -> Result<(), SensorError> {
    let denying = PROGRAMS.into_iter().find(|denying| *denying == name);
    if let Some((name, pins)) = denying.zip(pins) {
        return pins.attach(name, program, cgroup);
    }
    let link =
        attach_for_now(program, cgroup).map_err(|error| SensorError::attach(name, &error))?;
    links.0.insert(name.to_owned(), link);
    Ok(())
}

/// A link is multi-attach by nature; the kernel rejects any other mode's flags.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

fn attach_for_now(program: &mut Program, cgroup: impl AsFd) -> Result<Box<dyn Any>, ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, MODE)?;
            Ok(Box::new(program.take_link(id)?))
        }
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, MODE)?;
            Ok(Box::new(program.take_link(id)?))
        }
        Program::SockOps(program) => {
            let id = program.attach(cgroup, MODE)?;
            Ok(Box::new(program.take_link(id)?))
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
