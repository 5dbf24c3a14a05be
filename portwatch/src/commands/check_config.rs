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
    util::console,
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
    for warning in config.policy.warnings() {
        console::log(&format!("{}: {warning}", args.path.display()));
    }
    let text = describe(&config, &args.registry.read()?)?;
    write(format!("{}: {text}", Printable::from(&*args.path)), out)?;
    Ok(())
}

fn describe(config: &Config, registry: &Registry) -> Result<String> {
    let rules = config.policy.rules();
    let mut text = format!("{}\n", count_of(rules.len(), "rule"));
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
            "binds can be denied: {} in the kernel, on {}",
            count_of(deny.rules.len(), "rule"),
            count_of(deny.ports.len(), "(port, transport) pair"),
        )?;
    }
    Ok(text)
}

/// `1 rule`, `2 rules`.
fn count_of(number: usize, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {thing}s"),
    }
}
