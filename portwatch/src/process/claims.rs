//! Which claims about a process are certain. Units, containers and cgroups have their names from
//! directories, and an unprivileged process can make a directory of any name where it may make one at
//! all.

use serde::Serialize;

use super::{MAX_CGROUP, MAX_UNIT, cgroup, container, runtime_state};
use crate::{
    linux::hierarchy::{self, Hierarchy},
    model::Printable,
};

/// What is certain about a process's place. It need not be what the names claim: a process in a cgroup
/// `nginx.service` below a user's session is certain to be in that session's unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The innermost unit that is certain.
    pub unit: Option<VerifiedUnit>,
    /// The outermost container, if that is certain.
    pub container: Option<VerifiedContainer>,
    /// The first part of the path in the cgroup v2 hierarchy, up to the last directory that root
    /// created.
    pub cgroup: Option<Printable>,
}

impl Verified {
    /// Nothing is certain.
    pub const NOTHING: Self = Self {
        unit: None,
        container: None,
        cgroup: None,
    };
}

/// A unit that is certain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedUnit {
    /// Its name.
    pub name: Printable,
    /// Whose mark the cgroup has.
    pub by: &'static str,
}

/// A container that is certain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedContainer {
    /// Its id or name, as its runtime calls it.
    pub id: Printable,
    /// The runtime that keeps state of it.
    pub by: &'static str,
}

/// Checks claims against the mounted cgroup hierarchies.
#[derive(Debug)]
pub(super) struct Claims {
    hierarchies: Vec<Hierarchy>,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            hierarchies: hierarchy::all(),
        }
    }
}

impl Claims {
    /// What is certain about a process in these cgroups (proc_pid_cgroup(5)).
    pub(super) fn verify(&self, cgroups: &[u8]) -> Verified {
        let mut verified = Verified::NOTHING;
        for (controllers, path) in cgroup::paths(cgroups) {
            let is_v2 = controllers.is_empty();
            let container = container::outermost(path);
            let may_have_unit =
                verified.unit.is_none() && (is_v2 || controllers == b"name=systemd");
            let may_have_container = verified.container.is_none() && container.is_some();
            if !(may_have_unit || may_have_container) {
                continue;
            }
            let mut hierarchies = self.hierarchies.iter();
            let Some(hierarchy) = hierarchies.find(|one| one.has(controllers)) else {
                continue;
            };
            let steps = hierarchy.chosen_by_root(path);
            if is_v2 {
                let names: Vec<&[u8]> = steps.iter().map(|step| step.name).collect();
                let prefix = [b"/", &*names.join(&b'/')].concat();
                verified.cgroup = Some(Printable::limited(&prefix, MAX_CGROUP));
            }
            // Units within a container are those of its own service manager.
            let hosts = container
                .as_ref()
                .map_or(steps.len(), |(index, _)| index + 1);
            if may_have_unit {
                let first = steps
                    .iter()
                    .take(1)
                    .filter(|step| step.name == b"init.scope");
                let marked = steps.iter().take(hosts).filter(|step| step.is_unit);
                // The service manager's own unit is never started, so that it has no mark.
                let mut units = first
                    .chain(marked)
                    .filter(|step| cgroup::is_unit(step.name));
                verified.unit = units.next_back().map(|step| VerifiedUnit {
                    name: Printable::limited(step.name, MAX_UNIT),
                    by: "systemd",
                });
            }
            if let Some((index, container)) = container
                && may_have_container
                && index < steps.len()
            {
                verified.container = runtime_state::of(&container).map(|by| VerifiedContainer {
                    id: container.id,
                    by,
                });
            }
        }
        verified
    }
}
