//! Arguments that several commands share.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use jiff::civil::Date;

use crate::{
    config::{Config, ConfigError, Overrides, Source},
    registry::{ReadError, Registry},
    util::console,
};

/// Which rules.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// Rules file
    ///
    /// Default: /etc/portwatch/portwatch.toml, if it exists. On SIGHUP the monitor reads it again.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The source of the configuration, with the other overrides of the command line.
    #[must_use]
    pub fn source(self, overrides: Overrides) -> Source {
        Source {
            path: self.config,
            overrides,
        }
    }
}

/// Reads the configuration and logs its warnings.
///
/// # Errors
///
/// [`ConfigError`].
pub fn load(source: &Source) -> Result<Config, ConfigError> {
    let config = source.load()?;
    for warning in &config.warnings {
        console::log(warning);
    }
    Ok(config)
}

/// Which registry.
#[derive(Clone, Debug, Default, Args)]
pub struct RegistryArgs {
    /// IANA's service-names-port-numbers.csv, of any date, instead of the built-in registry
    #[arg(long, value_name = "FILE")]
    registry: Option<PathBuf>,
    /// Date of that file; default: the newest date in it
    #[arg(long, value_name = "YYYY-MM-DD", requires = "registry")]
    registry_as_of: Option<Date>,
}

impl RegistryArgs {
    /// Reads the registry; logs when the file does not cover all system ports.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn read(&self) -> Result<Registry, ReadError> {
        let Some(path) = &self.registry else {
            return Registry::embedded();
        };
        let registry = Registry::from_csv(path, self.registry_as_of)?;
        let missing = registry.ports_without_row();
        if missing > 0 {
            console::log(&format!(
                "{}: no row for {missing} system ports, which count as unassigned; is the file \
                 complete?",
                path.display()
            ));
        }
        Ok(registry)
    }
}
