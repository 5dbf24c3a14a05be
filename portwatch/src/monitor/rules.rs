//! What the rules ask of the monitor, and how they are read again.

use std::rc::Rc;

use anyhow::Result;

use super::{Monitor, Options, armed::missing_cgroups, scheduler::Why};
use crate::{
    aggregate::Settings,
    inventory::Scope,
    model::{DenyRules, Transport},
    policy::Policy,
    registry::Registry,
    util::console,
};

impl Monitor {
    /// Reads the rules again. What is wrong with them leaves those that hold.
    pub(super) fn reload(&mut self, options: &Options) {
        match self.try_reload(options) {
            Ok(said) => console::log(&said),
            Err(error) => {
                let detail = format!("the rules stay as they were: {error:#}");
                console::log(&detail);
                self.warn(&detail);
                self.write();
            }
        }
    }

    fn try_reload(&mut self, options: &Options) -> Result<String> {
        let Some(path) = &options.config else {
            return Ok("SIGHUP: there is no configuration to reload".into());
        };
        let policy = Policy {
            all: options.policy.all,
            dry_run: options.policy.dry_run,
            ..Policy::read(path)?
        };
        let quiet = Settings {
            enabled: policy.quiet.enabled && !options.no_collapse,
            ..policy.quiet
        };
        let policy = Rc::new(Policy { quiet, ..policy });
        let registry = self.tracker.registry();
        self.sensor
            .watch(policy.watched(registry, &Transport::ALL))?;
        self.sensor.deny(&refusals(&policy, registry))?;
        self.scheduler.set_scope(scope(&policy, registry, options));
        self.collapse.set_quiet(quiet);
        self.sensor.count_repeats(quiet.enabled);
        for limit in missing_cgroups(&self.sensor) {
            console::log(&limit);
        }
        let said = format!("reloaded {}: {} rules", path.display(), policy.rules.len());
        self.tracker.set_policy(policy);
        // On a port that was not watched before, something can sit.
        self.scheduler.ask(Why::Loss);
        Ok(said)
    }

    /// Looks again for the cgroups of rules that refuse.
    pub(super) fn find_cgroups(&mut self) {
        let refusals = refusals(self.tracker.policy(), self.tracker.registry());
        if let Err(error) = self.sensor.deny(&refusals) {
            self.warn(&error.to_string());
        }
    }
}

/// What the kernel side is to refuse.
pub(super) fn refusals(policy: &Policy, registry: &Registry) -> DenyRules {
    if policy.dry_run {
        return DenyRules::default();
    }
    policy.refusals(registry)
}

/// What snapshots are to show.
pub(super) fn scope(policy: &Policy, registry: &Registry, options: &Options) -> Scope {
    Scope {
        watched: policy.watched(registry, &Transport::ALL).collect(),
        cgroup: options.sensor.cgroup.clone(),
    }
}
