//! `portwatch run`: the monitor.

use std::{io, path::PathBuf, time::Duration};

use anyhow::Result;

use super::args::{ConfigArgs, RegistryArgs};
use crate::{
    config::Overrides,
    monitor,
    output::{ColorChoice, FormatName},
    sensor,
    util::console,
};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: FormatName,
    /// Watch assigned ports too
    #[arg(long)]
    all: bool,
    /// Size of the ring buffer in bytes: a power of two, at least one page, at most 1 GiB
    ///
    /// An event takes 128 bytes, and 1,584 more when its process has executed a new program. Events
    /// that do not fit are lost; a `loss` alert gives their number.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(..=1 << 30))]
    ring_size: u32,
    /// Seconds between two health checks of the BPF programs
    ///
    /// Detached programs are attached again and reported as a `health` alert.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    health_interval: u64,
    /// Watch only this cgroup and those below it
    ///
    /// A directory in the cgroup v2 hierarchy. Default: the whole host, wherever the hierarchy is
    /// mounted.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Whether text is coloured
    ///
    /// `auto` colours it at a terminal, unless NO_COLOR is set or TERM is `dumb`, and everywhere if
    /// CLICOLOR_FORCE is set.
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    color: ColorChoice,
    /// Report every event; do not aggregate
    #[arg(long)]
    no_aggregate: bool,
    /// The old name of --no-aggregate
    #[arg(long, hide = true)]
    no_collapse: bool,
    /// Do not report who sends datagrams to UDP sockets
    ///
    /// The same as enabled = false in the section receive of the rules file.
    #[arg(long)]
    no_receive: bool,
    /// Report the end of each TCP connection on a watched port: duration, bytes, who closed it
    ///
    /// Otherwise the connections of a listener are only summed, in its close.
    #[arg(long)]
    sessions: bool,
    /// Deny nothing; report what the rules would deny
    #[arg(long)]
    dry_run: bool,
    /// Keep denying when the monitor ends, even if it is killed
    ///
    /// Needs a BPF file system at /sys/fs/bpf. `portwatch unpin` stops it; the next run replaces it.
    #[arg(long, conflicts_with = "dry_run")]
    fail_closed: bool,
    /// Do not read the ring with real-time priority
    ///
    /// Otherwise alerts come before the other work of a busy host, as long as that takes less than a
    /// twentieth of a core.
    #[arg(long)]
    no_realtime: bool,
    /// Keep all privileges after arming; for debugging only
    ///
    /// Otherwise the monitor gives up the capabilities and system calls that it no longer needs.
    #[arg(long)]
    no_sandbox: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl Args {
    /// What they override in the configuration.
    const fn overrides(&self) -> Overrides {
        Overrides {
            all: self.all,
            dry_run: self.dry_run,
            no_aggregate: self.no_aggregate || self.no_collapse,
            no_receive: self.no_receive,
            sessions: self.sessions,
        }
    }
}

/// Runs the monitor until SIGINT or SIGTERM. It takes stdout itself.
///
/// # Errors
///
/// Those of the configuration, the registry and [`monitor::run`].
pub fn run(args: Args, _out: &mut impl io::Write) -> Result<()> {
    if args.no_collapse {
        console::log("--no-collapse is now --no-aggregate");
    }
    let registry = args.registry.read()?;
    let overrides = args.overrides();
    let options = monitor::Options {
        format: args.format,
        color: args.color,
        source: args.config.source(overrides),
        sensor: sensor::Options {
            ring_size: args.ring_size,
            cgroup: args.cgroup,
            fail_closed: args.fail_closed,
        },
        health_interval: Duration::from_secs(args.health_interval),
        sandbox: !args.no_sandbox,
        realtime: !args.no_realtime,
    };
    monitor::run(&options, registry)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn arguments_override_the_configuration() {
        let none = Overrides::default();
        for (arguments, expected) in [
            (&[][..], none),
            (&["--all"], Overrides { all: true, ..none }),
            (
                &["--sessions"],
                Overrides {
                    sessions: true,
                    ..none
                },
            ),
            (
                &["--dry-run"],
                Overrides {
                    dry_run: true,
                    ..none
                },
            ),
            (
                &["--no-aggregate"],
                Overrides {
                    no_aggregate: true,
                    ..none
                },
            ),
            (
                &["--no-receive"],
                Overrides {
                    no_receive: true,
                    ..none
                },
            ),
            (
                &["--no-collapse"],
                Overrides {
                    no_aggregate: true,
                    ..none
                },
            ),
        ] {
            let cli = Cli::parse_from(["run"].iter().chain(arguments));
            assert_eq!(cli.args.overrides(), expected, "{arguments:?}");
        }
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("--no-aggregate") && !help.contains("collapse"));
    }
}
