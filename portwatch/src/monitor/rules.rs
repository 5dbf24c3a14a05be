//! The configuration, read again on SIGHUP.

use std::rc::Rc;

use anyhow::Result;

use super::{Monitor, Options, armed::missing_cgroups, scheduler::Why};
use crate::{
    config::{Config, DEFAULT_PATH},
    inventory::Scope,
    model::Transport,
    registry::Registry,
    util::console,
};

impl Monitor {
    /// Reads the configuration again. A malformed one leaves the previous one in force.
    pub(super) fn reload(&mut self, options: &Options) {
        match self.try_reload(options) {
            Ok(message) => console::log(&message),
            Err(error) => {
                // One line: the cited source line is for `check-config`.
                let error = format!("{error:#}");
                let problem = error.lines().next().unwrap_or_default();
                let detail = format!("the rules stay as they were: {problem}");
                console::log(&detail);
                self.warn(&detail);
                self.write();
            }
        }
    }

    fn try_reload(&mut self, options: &Options) -> Result<String> {
        let config = options.source.load()?;
        let registry = self.tracker.registry();
        self.sensor
            .watch(config.watched(registry, &Transport::ALL))?;
        self.sensor.refuse(&config.deny_rules(registry))?;
        self.scheduler.set_scope(scope(&config, registry, options));
        self.collapse.set_quiet(config.aggregate);
        self.sensor.count_repeats(config.aggregate.enabled);
        for message in config.warnings.iter().chain(&missing_cgroups(&self.sensor)) {
            console::log(message);
        }
        let message = match &config.path {
            Some(path) => format!(
                "reloaded {}: {} rules",
                path.display(),
                config.policy.rules().len()
            ),
            None => format!("reloaded: {DEFAULT_PATH} does not exist, so there are no rules"),
        };
        self.tracker
            .set_policy(Rc::new(config.policy.clone()), config.dry_run);
        self.config = config;
        // A port that was not watched before can be in use.
        self.scheduler.ask(Why::Loss);
        Ok(message)
    }

    /// Resolves the deny rules' cgroups again.
    pub(super) fn find_cgroups(&mut self) {
        let deny = self.config.deny_rules(self.tracker.registry());
        if let Err(error) = self.sensor.refuse(&deny) {
            self.warn(&error.to_string());
        }
    }
}

/// The sockets that a scan is to show.
pub(super) fn scope(config: &Config, registry: &Registry, options: &Options) -> Scope {
    Scope {
        watched: config.watched(registry, &Transport::ALL).collect(),
        cgroup: options.sensor.cgroup.clone(),
    }
}
