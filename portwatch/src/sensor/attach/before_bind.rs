//! The programs that deny before the kernel looks for the port. Every bind on the host runs them, so
//! they are attached only while there are rules that deny. Without them `post_bind` denies alone.
#![forbid(unsafe_code)]

use std::{collections::HashMap, os::fd::AsFd};

use aya::{
    Ebpf,
    programs::{Program, cgroup_sock_addr::CgroupSockAddrLink},
};
use portwatch_common::names;

use super::{MODE, Pins};
use crate::sensor::{SensorError, object::load_programs};

/// What became of the programs.
pub(in crate::sensor) struct BeforeBind {
    /// Why they do not run; None where they do, or are not needed.
    rejected: Option<String>,
    needed: bool,
    /// Those without a pin.
    links: HashMap<&'static str, CgroupSockAddrLink>,
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
            links: HashMap::new(),
        }
    }

    /// Attaches them, or detaches them where they are not `needed`.
    pub(in crate::sensor) fn set(
        &mut self,
        needed: bool,
        ebpf: &mut Ebpf,
        cgroup: impl AsFd + Copy,
        mut pins: Option<&mut Pins>,
    ) -> Result<(), SensorError> {
        let needed = needed && self.rejected.is_none();
        if needed && self.needed {
            return Ok(());
        }
        self.needed = needed;
        for name in names::BEFORE_BIND {
            let pins = pins.as_deref_mut();
            if !needed {
                self.links.remove(name);
                pins.map_or(Ok(()), |pins| pins.detach(name))?;
            } else if let Some(program) = ebpf.program_mut(name) {
                self.attach(name, program, cgroup, pins)?;
            }
        }
        Ok(())
    }

    /// Attaches one of them.
    pub(in crate::sensor) fn attach(
        &mut self,
        name: &'static str,
        program: &mut Program,
        cgroup: impl AsFd,
        pins: Option<&mut Pins>,
    ) -> Result<(), SensorError> {
        if let Some(pins) = pins {
            return pins.attach(name, program, cgroup);
        }
        let failed = |error| SensorError::attach(name, &error);
        let Program::CgroupSockAddr(program) = program else {
            return Ok(());
        };
        let id = program.attach(cgroup, MODE).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        self.links.insert(name, link);
        Ok(())
    }

    /// Detaches those without a pin.
    pub(in crate::sensor) fn detach(&mut self) {
        self.links.clear();
    }

    /// Whether the program of that name is one of them, and is to be attached.
    pub(in crate::sensor) fn needs(&self, name: &str) -> bool {
        self.needed && names::BEFORE_BIND.contains(&name)
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
