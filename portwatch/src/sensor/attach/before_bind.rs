//! The programs that deny before the kernel looks for the port. Every bind on the host runs them, so
//! they are attached only while there are rules that deny. Without them `post_bind` denies alone.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use aya::Ebpf;
use portwatch_common::names;

use super::{Links, Pins, attach_program};
use crate::sensor::{SensorError, object::load_programs};

/// What became of the programs.
pub(in crate::sensor) struct BeforeBind {
    /// Why they do not run; None where they do, or are not needed.
    rejected: Option<String>,
    needed: bool,
}

impl BeforeBind {
    /// Loads them.
    pub(in crate::sensor) fn load(ebpf: &mut Ebpf) -> Self {
        let programs = ebpf
            .programs_mut()
            .filter(|(name, _)| names::BEFORE_BIND.contains(name));
        Self {
            rejected: load_programs(programs).err().map(|error| error.to_string()),
            needed: false,
        }
    }

    /// Attaches them, or detaches them where they are not `needed`.
    pub(in crate::sensor) fn set(
        &mut self,
        needed: bool,
        ebpf: &mut Ebpf,
        cgroup: impl AsFd + Copy,
        mut pins: Option<&mut Pins>,
        links: &mut Links,
    ) -> Result<(), SensorError> {
        let needed = needed && self.rejected.is_none();
        if needed && self.needed {
            return Ok(());
        }
        self.needed = needed;
        for name in names::BEFORE_BIND {
            let pins = pins.as_deref_mut();
            if !needed {
                links.remove(name);
                pins.map_or(Ok(()), |pins| pins.detach(name))?;
            } else if let Some(program) = ebpf.program_mut(name) {
                attach_program(name, program, cgroup, pins, links)?;
            }
        }
        Ok(())
    }

    /// Whether they are to be attached.
    pub(in crate::sensor) const fn is_needed(&self) -> bool {
        self.needed
    }

    /// How many are attached.
    pub(in crate::sensor) const fn attached(&self) -> usize {
        if self.needed {
            names::BEFORE_BIND.len()
        } else {
            0
        }
    }

    /// Why they do not run.
    pub(in crate::sensor) fn rejected(&self) -> Option<&str> {
        self.rejected.as_deref()
    }
}
