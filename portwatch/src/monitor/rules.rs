//! What the rules mean for the monitor, and how they are reloaded.

use anyhow::Result;

use super::{Monitor, Options, scheduler::Urgency, start::missing_cgroups};
use crate::{
    aggregate::Settings,
    inventory::Scope,
    model::{DenyRules, Transport},
    policy::Policy,
    registry::Registry,
    util::console,
};

impl Monitor {
    /// Reloads the rules. A file that cannot be used leaves the previous rules in force.
    pub(super) fn reload(&mut self, options: &Options) {
        match self.try_reload(options) {
            Ok(text) => console::log(&text),
            Err(error) => {
                let detail = format!("reload failed, keeping the previous rules: {error:#}");
                console::log(&detail);
                self.warn(detail);
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
        let settings = Settings {
            enabled: policy.quiet.enabled && !options.no_collapse,
            ..policy.quiet
        };
        let registry = self.pipeline.decider().registry();
        self.sensor
            .watch(policy.watched(registry, &Transport::ALL))?;
        self.sensor.refuse(&deny_rules(&policy, registry))?;
        self.scheduler.set_scope(scope(&policy, registry, options));
        self.sensor.count_repeats(settings.enabled);
        for limit in missing_cgroups(&self.sensor) {
            console::log(&limit);
        }
        let text = format!("reloaded {}: {} rules", path.display(), policy.rules.len());
        let dry_run = policy.dry_run;
        self.pipeline.set_policy(policy, dry_run, settings);
        // Something can be on a port that was not watched before.
        self.scheduler.request(Urgency::Loss);
        Ok(text)
    }

    /// Looks again for the cgroups of deny rules.
    pub(super) fn find_cgroups(&mut self) {
        let decider = self.pipeline.decider();
        let rules = deny_rules(decider.policy(), decider.registry());
        if let Err(error) = self.sensor.refuse(&rules) {
            self.warn(error.to_string());
        }
    }
}

/// What the BPF programs are to deny.
pub(super) fn deny_rules(policy: &Policy, registry: &Registry) -> DenyRules {
    if policy.dry_run {
        return DenyRules::default();
    }
    policy.refusals(registry)
}

/// What scans are to show.
pub(super) fn scope(policy: &Policy, registry: &Registry, options: &Options) -> Scope {
    Scope {
        watched: policy.watched(registry, &Transport::ALL).collect(),
        cgroup: options.sensor.cgroup.clone(),
    }
}
