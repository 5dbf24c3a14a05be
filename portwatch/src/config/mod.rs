//! The configuration: the operator's file and what the command line overrides.
#![forbid(unsafe_code)]

mod error;
mod file;
mod values;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use self::error::{Cited, ConfigError, Place};
use crate::{
    aggregate::Settings,
    model::{DenyRules, Transport},
    policy::{DefaultScope, Policy, Rule},
    registry::Registry,
    sensor::ReceiveSettings,
    util::input::{self, Allowed, InputError},
};

/// The file that is read, if it exists, when the command line names none.
pub const DEFAULT_PATH: &str = "/etc/portwatch/portwatch.toml";

/// Bytes of a file.
const MAX_BYTES: u64 = 2 << 20;

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file; None for [`DEFAULT_PATH`] if that exists.
    pub path: Option<PathBuf>,
    /// What the command line overrides.
    pub overrides: Overrides,
}

/// What the command line overrides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Watch assigned ports too.
    pub all: bool,
    /// Deny nothing.
    pub dry_run: bool,
    /// Aggregate nothing.
    pub no_aggregate: bool,
    /// Look at no datagrams.
    pub no_receive: bool,
    /// Report the end of each connection.
    pub sessions: bool,
}

/// The effective configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The rules.
    pub policy: Policy,
    /// The ports that are watched where no rule decides.
    pub scope: DefaultScope,
    /// Report what the rules would deny, and deny nothing.
    pub dry_run: bool,
    /// The limits of the aggregation.
    pub aggregate: Settings,
    /// Whether and how datagrams are looked at.
    pub receive: ReceiveSettings,
    /// For the operator: old names in the file, each as `FILE:LINE: old is now new`.
    pub warnings: Vec<String>,
    /// The file that was read; None without one.
    pub path: Option<PathBuf>,
}

impl Source {
    /// Reads the configuration at start. Can block.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        self.load_or_default(Path::new(DEFAULT_PATH), Allowed::FileOrPipe)
    }

    /// Reads it again. A pipe, which would be empty now, is an error. Can block.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn reload(&self) -> Result<Config, ConfigError> {
        self.load_or_default(Path::new(DEFAULT_PATH), Allowed::File)
    }

    fn load_or_default(&self, default: &Path, allowed: Allowed) -> Result<Config, ConfigError> {
        let path = self.path.as_deref().unwrap_or(default);
        let config = match input::read_text(path, MAX_BYTES, allowed) {
            Ok(text) => Config::parse(&text, path)?,
            Err(InputError::Io { source, .. })
                if self.path.is_none() && source.kind() == io::ErrorKind::NotFound =>
            {
                Config::default()
            }
            Err(error) => return Err(error.into()),
        };
        Ok(self.overrides.apply(config))
    }
}

impl Overrides {
    fn apply(self, mut config: Config) -> Config {
        if self.all {
            config.scope = DefaultScope::All;
        }
        config.dry_run = self.dry_run;
        config.aggregate.enabled &= !self.no_aggregate;
        config.receive.enabled &= !self.no_receive;
        config.aggregate.sessions |= self.sessions;
        config
    }
}

impl Config {
    /// Parses the text of the file `path`.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let contents = file::parse(text).map_err(|(span, problem)| ConfigError::Malformed {
            path: path.into(),
            place: Place::of(text, span.start),
            problem,
            cited: Cited::of(text, &span),
        })?;
        let warnings = contents.deprecated.iter().map(|name| {
            let (file, line) = (path.display(), name.place.line);
            format!("{file}:{line}: {} is now {}", name.old, name.new)
        });
        Ok(Self {
            warnings: warnings.collect(),
            policy: contents.policy,
            aggregate: contents.aggregate,
            receive: contents.receive,
            path: Some(path.into()),
            ..Self::default()
        })
    }

    /// The (port, transport) pairs on which an event can end in an alert.
    pub fn watched<'a>(
        &'a self,
        registry: &'a Registry,
        transports: &'a [Transport],
    ) -> impl Iterator<Item = (u16, Transport)> + 'a {
        self.policy.watched(registry, self.scope, transports)
    }

    /// Whether the end of a connection can be an alert.
    #[must_use]
    pub fn reports_sessions(&self) -> bool {
        self.aggregate.sessions || self.policy.rules().iter().any(Rule::reports_sessions)
    }

    /// The deny rules to enforce: none with `dry_run`.
    #[must_use]
    pub fn deny_rules(&self, registry: &Registry) -> DenyRules {
        if self.dry_run {
            return DenyRules::default();
        }
        self.policy.deny_rules(registry)
    }
}

#[cfg(test)]
mod tests;
