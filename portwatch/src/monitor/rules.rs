//! What the configuration means for the monitor, and how it is reloaded.

use anyhow::Result;

use super::{Monitor, Options, now, scheduler::Urgency, start::missing_cgroups};
use crate::{
    config::{Config, DEFAULT_PATH},
    inventory::Scope,
    model::Transport,
    registry::Registry,
    util::console,
};

impl Monitor {
    /// Applies a configuration that was loaded. One that cannot be used leaves the previous one in force.
    pub(super) fn reload(&mut self, loaded: Result<Config>, options: &Options) {
        match loaded.and_then(|config| self.apply(config, options)) {
            Ok(text) => {
                console::log(&text);
                self.service.ready(&text);
            }
            Err(error) => {
                // One line: the cited source line is for `check-config`.
                let error = format!("{error:#}");
                let problem = error.lines().next().unwrap_or_default();
                let detail = format!("reload failed, keeping the previous rules: {problem}");
                console::log(&detail);
                self.service.ready(&detail);
                self.warn(detail);
            }
        }
    }

    fn apply(&mut self, config: Config, options: &Options) -> Result<String> {
        if let Err(error) = self.program(&config) {
            // Whole or not at all.
            return Err(match self.program(&self.config.clone()) {
                Ok(()) => error,
                Err(undo) => error.context(format!("the previous rules are not whole: {undo}")),
            });
        }
        let registry = self.pipeline.decider().registry();
        let scope = scope(&config, registry, options);
        self.sensor.count_repeats(config.aggregate.enabled);
        self.sensor.wake_for_sessions(config.reports_sessions());
        for message in config.warnings.iter().chain(&missing_cgroups(&self.sensor)) {
            console::log(message);
        }
        let rules = config.policy.rules().len();
        let text = match &config.path {
            Some(path) => format!("reloaded {}: {rules} rules", path.display()),
            None => format!("reloaded: {DEFAULT_PATH} does not exist, so there are no rules"),
        };
        let (policy, settings) = (config.policy.clone(), config.aggregate);
        self.pipeline
            .set_policy(policy, config.dry_run, settings, now());
        self.cgroups.rules_changed();
        self.config = config;
        // After the policy, so that what waits is reported by the rules under which it happened.
        self.pipeline.tracker().forget_unwatched(&scope);
        self.stop_receiving();
        self.sensor.set_receive(self.config.receive);
        let deny = self.config.deny_rules(self.pipeline.decider().registry());
        self.canary.choose_ports(&scope, &deny);
        self.scheduler.set_scope(scope);
        // Something can be on a port that was not watched before.
        self.scheduler.request(Urgency::Loss);
        Ok(text)
    }

    /// Writes what the BPF programs evaluate.
    fn program(&mut self, config: &Config) -> Result<()> {
        let registry = self.pipeline.decider().registry();
        self.sensor
            .watch(config.watched(registry, &Transport::ALL))?;
        self.sensor.deny(&config.deny_rules(registry))?;
        Ok(())
    }
}

/// What scans are to show.
pub(super) fn scope(config: &Config, registry: &Registry, options: &Options) -> Scope {
    Scope {
        watched: config.watched(registry, &Transport::ALL).collect(),
        cgroup: options.sensor.cgroup.clone(),
        ..Scope::default()
    }
}
