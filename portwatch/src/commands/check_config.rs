//! `portwatch check-config`: validates a rules file and prints the effective policy.

use std::{fmt::Write as _, io, path::PathBuf};

use anyhow::Result;

use super::{
    args::{self, RegistryArgs},
    write,
};
use crate::{
    config::{Config, DEFAULT_PATH, Overrides, Source},
    model::{Printable, Transport},
    registry::Registry,
};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Rules file
    #[arg(value_name = "FILE", default_value = DEFAULT_PATH)]
    path: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Writes the effective policy.
///
/// # Errors
///
/// [`ConfigError`](crate::config::ConfigError) with the place; those of the registry.
pub fn run(args: Args, out: &mut impl io::Write) -> Result<()> {
    let source = Source {
        path: Some(args.path.clone()),
        overrides: Overrides::default(),
    };
    let config = args::load(&source)?;
    let text = describe(&config, &args.registry.read()?)?;
    write(format!("{}: {text}", Printable::from(&*args.path)), out)?;
    Ok(())
}

fn describe(config: &Config, registry: &Registry) -> Result<String> {
    let rules = config.policy.rules();
    let mut text = format!("{} rules\n", rules.len());
    for rule in rules {
        let reason = rule.reason.as_deref().unwrap_or("no reason given");
        let (name, reason) = (Printable::from(&*rule.name), Printable::from(reason));
        writeln!(text, "  {:<8} {name}: {reason}", rule.decision.name())?;
    }
    let count = |transport| config.watched(registry, &[transport]).count();
    let [tcp, udp] = [Transport::Tcp, Transport::Udp].map(count);
    writeln!(text, "{tcp} tcp and {udp} udp ports are watched")?;
    if config.policy.denies() {
        let deny = config.deny_rules(registry);
        writeln!(
            text,
            "binds can be denied: {} rules in the kernel, on {} (port, transport) pairs",
            deny.rules.len(),
            deny.ports.len(),
        )?;
    }
    Ok(text)
}
