//! Whether the sensor still sits where it was attached: a link can be detached by anyone with the
//! privilege, and goes when its cgroup goes.
#![forbid(unsafe_code)]

use std::os::fd::AsFd as _;

use aya::{Ebpf, programs::Program};
use portwatch_common::names;

use super::{
    Cgroup, Pins, attach_program,
    cgroup::is_replaced,
    hooks::{HOOKS, attached},
    tracepoint::{self, Tracepoint},
};
use crate::sensor::Sensor;

/// A part of the sensor that was lost or regained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the sensor is whole again.
    pub regained: bool,
    /// What happened, for people.
    pub detail: String,
}

/// What is missing when the watched cgroup is.
const CGROUP: &str = "cgroup";

impl Sensor {
    /// Attaches again each program that is no longer attached. Returns each change once.
    pub fn check(&mut self) -> Vec<Health> {
        let mut changes = Vec::new();
        let Some(ebpf) = &mut self.ebpf else {
            return changes;
        };
        for (name, error) in self.pins.iter_mut().flat_map(Pins::check) {
            let detail = match &error {
                None => format!("the pin of the program {name} was gone, and is there again"),
                Some(error) => format!("the pin of the program {name} is gone: {error}"),
            };
            changes.push(Health {
                regained: error.is_none(),
                detail,
            });
        }
        if let Some(path) = &self.cgroup_path
            && is_replaced(path, &self.cgroup_fd)
        {
            let name = path.display();
            match Cgroup::open(Some(path)) {
                Ok(cgroup) => {
                    self.cgroup_fd = cgroup.fd;
                    self.missing.remove(CGROUP);
                    changes.push(Health {
                        regained: true,
                        detail: format!("the cgroup {name} was removed, and is there again"),
                    });
                }
                // Attached to it, the programs would see nothing.
                Err(_) => {
                    if self.missing.insert(CGROUP) {
                        changes.push(Health {
                            regained: false,
                            detail: format!("the cgroup {name} was removed: nothing is watched"),
                        });
                    }
                    return changes;
                }
            }
        }
        for (name, attach_type) in HOOKS {
            let Some((id, program)) = program(ebpf, name) else {
                continue;
            };
            let here = attached(self.cgroup_fd.as_fd(), attach_type)
                .is_ok_and(|programs| programs.contains(&id));
            if here {
                continue;
            }
            if names::BEFORE_BIND.contains(&name) && !self.before_bind.is_needed() {
                continue;
            }
            let was_known = self.missing.contains(name);
            let (cgroup, pins, links) = (&self.cgroup_fd, self.pins.as_mut(), &mut self.links);
            match attach_program(name, program, cgroup, pins, links) {
                Ok(()) => {
                    self.missing.remove(name);
                    changes.push(Health {
                        regained: true,
                        detail: format!("the program {name} was detached, and is attached again"),
                    });
                }
                Err(error) if !was_known => {
                    self.missing.insert(name);
                    changes.push(Health {
                        regained: false,
                        detail: format!("the program {name} was detached: {error}"),
                    });
                }
                Err(_) => {}
            }
        }
        changes.extend(match self.deny.restore() {
            Ok(false) => None,
            // Binds were allowed meanwhile.
            Ok(true) => Some(Health {
                regained: false,
                detail: "another program changed the deny rules in the kernel; they are as the \
                         configuration says again"
                    .into(),
            }),
            Err(error) => Some(Health {
                regained: false,
                detail: format!("the deny rules in the kernel are not known: {error}"),
            }),
        });
        changes.extend(self.restore_maps());
        let Some(ebpf) = &mut self.ebpf else {
            return changes;
        };
        if self.tracepoint == Tracepoint::NotNeeded && !tracepoint::registered().is_empty() {
            self.tracepoint = Tracepoint::attach_loaded(ebpf, tracepoint::registered());
            changes.push(match &self.tracepoint {
                Tracepoint::Rejected(_, why) => Health {
                    regained: false,
                    detail: format!("sctp or dccp is here now, and not covered: {why}"),
                },
                _ => Health {
                    regained: true,
                    detail: "sctp or dccp is here now, and covered from listen on".into(),
                },
            });
        }
        changes
    }
}

/// A loaded program of that name, and the kernel's id of it.
fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Option<(u32, &'a mut Program)> {
    let program = ebpf.program_mut(name)?;
    let id = program.info().ok()?.id();
    Some((id, program))
}
