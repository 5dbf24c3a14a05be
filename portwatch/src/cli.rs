//! The command line.

use std::{io, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use jiff::civil::Date;

use crate::{
    commands::{
        check_config::{check_config, explain_alert, print},
        doctor,
        explain::{PortSpec, explain},
        list,
    },
    conformance,
    exit::{self, Exit, UsageError},
    model::Transport,
    monitor,
    output::{FormatName, StdoutGone},
    policy::{DEFAULT_PATH, Policy},
    registry::{self, Registry, Status},
    sensor,
    util::console,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; stopped by SIGINT or SIGTERM
  1  any other failure
  2  arguments that make no sense
  3  not root, or a capability is missing
  4  the kernel cannot do it or refused
  5  an input file is missing or malformed
  6  stdout takes no more: its reader went away, or its disk is full
  7  the self-test saw a path that was not told as it must be
  8  `list --check` found something on a watched port";

/// Tells, within a millisecond, what has taken a system port (0-1023) that IANA has not assigned
///
/// Alerts go to stdout, one line each; everything else goes to stderr. Without a command,
/// portwatch runs the monitor.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch this host and print an alert for each event on a watched port (needs root)
    #[command(after_help = EXIT_CODES)]
    Run(RunArgs),
    /// Say what the registry says of a port, and what holds it on this host now
    Explain {
        /// The port, with or without transport: 976, 443/udp
        #[arg(value_name = "PORT[/TRANSPORT]")]
        port: PortSpec,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Show the watched ports that are taken now, without a running monitor and without BPF
    #[command(after_help = EXIT_CODES)]
    List {
        /// A table, or the alerts that a monitor which starts now would print first
        #[arg(long, value_enum, default_value_t)]
        format: FormatName,
        /// Show assigned ports too
        #[arg(long)]
        all: bool,
        /// Exit with 8 when something is there, for cron and health checks
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Say whether the monitor can work on this host, and prove it
    #[command(after_help = EXIT_CODES)]
    Doctor {
        /// How the findings are written
        #[arg(long, value_enum, default_value_t)]
        format: FormatName,
        /// Take an unassigned port by every path that this kernel has, and compare the alerts
        ///
        /// In network namespaces of its own; it touches no socket of this host's.
        #[arg(long)]
        self_test: bool,
    },
    /// Say whether a configuration can be used, and what it comes to
    #[command(after_help = EXIT_CODES)]
    CheckConfig {
        /// The file
        #[arg(value_name = "FILE", default_value = DEFAULT_PATH)]
        path: PathBuf,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Say which rule decides on the alerts on stdin, one JSON object a line, and why
    #[command(after_help = EXIT_CODES)]
    ExplainAlert {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Let go of what an earlier `run --fail-closed` still refuses
    Unpin,
    /// Run one scenario of the conformance suite
    #[command(hide = true)]
    RunScenario {
        /// The scenario's name
        name: String,
    },
    /// Show the date and the counts of the registry, or what another one would change
    Registry {
        /// Show what this newer IANA CSV would change
        #[arg(long, value_name = "FILE")]
        diff: Option<PathBuf>,
        /// Print the compact table that the source tree embeds
        #[arg(long, conflicts_with = "diff", hide = true)]
        table: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// How alerts are written
    #[arg(long, value_enum, default_value_t)]
    format: FormatName,
    /// Alert on assigned ports too
    #[arg(long)]
    all: bool,
    /// Size of the ring buffer between kernel and agent: a power of two, at least a page
    ///
    /// A report takes 128 bytes, and 1,584 more when its process runs something new. Reports that find the buffer full are lost, and a `loss` alert
    /// says how many.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    ring_size: u32,
    /// Seconds between two looks at whether the sensor is whole
    ///
    /// What was detached is attached again, and a `health` alert says so.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    health_interval: u64,
    /// Watch only this cgroup and those below it
    ///
    /// A folder in the cgroup v2 hierarchy. By default all of the host is watched, wherever the
    /// hierarchy is mounted.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Tell everything one by one: bursts, every connection, each step of an outgoing socket
    #[arg(long = "no-aggregate", alias = "no-collapse")]
    no_collapse: bool,
    /// Refuse nothing, and say what the rules would refuse
    #[arg(long)]
    dry_run: bool,
    /// Go on refusing what the rules refuse when the monitor ends, however it ends
    ///
    /// Needs a BPF file system at /sys/fs/bpf. `portwatch unpin` lets go; the next run takes over.
    #[arg(long, conflicts_with = "dry_run")]
    fail_closed: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The rules
    ///
    /// Without this, /etc/portwatch/portwatch.toml, if it is there. SIGHUP makes the monitor read it
    /// again.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The file, if there is one.
    fn path(&self) -> Option<PathBuf> {
        let default = || Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists());
        self.config.clone().or_else(default)
    }

    fn read(&self) -> Result<Policy> {
        Ok(match self.path() {
            Some(path) => Policy::read(&path)?,
            None => Policy::default(),
        })
    }
}

#[derive(Debug, Args)]
struct RegistryArgs {
    /// Use IANA's service-names-port-numbers.csv of any year instead of the built-in registry
    #[arg(long, value_name = "FILE")]
    registry: Option<PathBuf>,
    /// The date of that file; by default the newest date in it
    #[arg(long, value_name = "YYYY-MM-DD", requires = "registry")]
    registry_as_of: Option<Date>,
}

impl RegistryArgs {
    fn read(&self) -> Result<Registry> {
        let Some(path) = &self.registry else {
            return Ok(Registry::embedded()?);
        };
        let registry = Registry::from_csv(path, self.registry_as_of)?;
        let unnamed = registry.unnamed_ports();
        if unnamed > 0 {
            console::log(&format!(
                "{}: names no row for {unnamed} system ports, which count as unassigned; \
                 is the file whole?",
                path.display()
            ));
        }
        Ok(registry)
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            let quiet = error
                .downcast_ref::<StdoutGone>()
                .is_some_and(StdoutGone::is_quiet);
            if !quiet {
                console::log(&format!("{error:#}"));
            }
            exit::of(&error).into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<()> {
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => {
            let registry = args.registry.read()?;
            let mut policy = args.config.read()?;
            policy.all = args.all;
            policy.dry_run = args.dry_run;
            policy.quiet.enabled &= !args.no_collapse;
            let options = monitor::Options {
                format: args.format,
                policy,
                config: args.config.path(),
                no_collapse: args.no_collapse,
                sensor: sensor::Options {
                    ring_size: args.ring_size,
                    cgroup: args.cgroup,
                    fail_closed: args.fail_closed,
                },
                health_interval: Duration::from_secs(args.health_interval),
            };
            monitor::run(&options, registry)
        }
        Command::Explain { port, registry } => {
            explain(port, &registry.read()?, &mut io::stdout().lock())
        }
        Command::List {
            format,
            all,
            check,
            config,
            registry,
        } => {
            let mut policy = config.read()?;
            policy.all = all;
            let options = list::Options {
                format,
                policy,
                check,
            };
            list::list(&options, registry.read()?, &mut io::stdout().lock())
        }
        Command::Doctor { format, self_test } => {
            doctor::doctor(format, self_test, &mut io::stdout())
        }
        Command::CheckConfig { path, registry } => {
            let text = check_config(&path, &registry.read()?)?;
            print(&text, &mut io::stdout())
        }
        Command::ExplainAlert { config } => {
            let text = explain_alert(&config.read()?, io::stdin().lock())?;
            print(&text, &mut io::stdout())
        }
        Command::Unpin => {
            if !sensor::unpin()? {
                console::log("nothing is pinned");
            }
            Ok(())
        }
        Command::RunScenario { name } => {
            conformance::run_scenario(&name);
            Ok(())
        }
        Command::Registry {
            diff,
            table,
            registry,
        } => {
            let text = show(&registry.read()?, diff, table)?;
            print(&text, &mut io::stdout())
        }
    }
}

/// What `portwatch registry` prints.
fn show(registry: &Registry, diff: Option<PathBuf>, table: bool) -> Result<String> {
    use std::fmt::Write as _;

    if table {
        if registry.as_of().is_none() {
            return Err(UsageError("the file has no date: give --registry-as-of".into()).into());
        }
        return Ok(registry::to_table(registry));
    }
    let date = |registry: &Registry| {
        registry
            .as_of()
            .map_or_else(|| "unknown date".into(), |date| date.to_string())
    };
    let mut text = String::new();
    if let Some(path) = diff {
        let newer = Registry::from_csv(&path, None)?;
        let changes = registry::diff(registry, &newer);
        for change in &changes {
            writeln!(text, "{change}")?;
        }
        writeln!(
            text,
            "{} changes from {} to {}",
            changes.len(),
            date(registry),
            date(&newer)
        )?;
        return Ok(text);
    }
    writeln!(
        text,
        "IANA's port registry as of {}, ports 0-1023",
        date(registry)
    )?;
    write!(text, "{:<10}", "transport")?;
    for status in Status::ALL {
        write!(text, " {:>12}", status.name())?;
    }
    writeln!(text)?;
    for transport in Transport::ALL {
        write!(text, "{:<10}", transport.name())?;
        for count in registry.counts(transport) {
            write!(text, " {count:>12}")?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bare_call_and_run_take_the_same_options() {
        let bare = Cli::parse_from(["portwatch", "--format", "json", "--all"]);
        assert!(bare.command.is_none() && bare.run.all);
        let run = Cli::parse_from(["portwatch", "run", "--format", "json", "--all"]);
        let Some(Command::Run(args)) = run.command else {
            panic!("not run")
        };
        assert_eq!((args.all, args.format), (true, FormatName::Json));
    }
}
