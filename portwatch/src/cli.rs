//! The command line.
#![forbid(unsafe_code)]

use std::{io, process::ExitCode, sync::LazyLock};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    alert::SCHEMA,
    commands::{
        check_config, completions, demo, doctor, explain, explain_alert, list, man, registry, run,
        run_scenario, unpin,
    },
    exit::{self, EXIT_CODES},
    registry::Registry,
    util::contained,
};

/// What `--version` prints after the name; `-V` prints the version alone.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\ncommit {}\ntarget {}-{}\nregistry of {}\nalert schema {SCHEMA}",
        env!("CARGO_PKG_VERSION"),
        // Set by `cargo xtask build` and `dist`.
        option_env!("PORTWATCH_COMMIT").unwrap_or("unknown"),
        std::env::consts::ARCH,
        if cfg!(target_env = "musl") {
            "musl"
        } else {
            "gnu"
        },
        Registry::embedded_date().unwrap_or("unknown date"),
    )
});

/// Alert when a process binds a system port (0-1023) that IANA has not assigned
///
/// Alerts go to stdout, one per line; messages go to stderr. Without a command, portwatch runs the
/// monitor.
#[derive(Debug, Parser)]
#[command(version, long_version = LONG_VERSION.as_str(), after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Monitor this host and print an alert for each event on a watched port (needs root)
    #[command(after_help = EXIT_CODES)]
    Run(run::Args),
    /// Print a port's registry entry and its sockets on this host
    Explain(explain::Args),
    /// List watched ports in use (no BPF, no running monitor needed)
    #[command(after_help = EXIT_CODES)]
    List(list::Args),
    /// Check whether the monitor can run on this host
    #[command(after_help = EXIT_CODES)]
    Doctor(doctor::Args),
    /// Validate a rules file and print the effective policy
    #[command(after_help = EXIT_CODES)]
    CheckConfig(check_config::Args),
    /// Print which rule decides on each alert on stdin (JSON, one per line)
    #[command(after_help = EXIT_CODES)]
    ExplainAlert(explain_alert::Args),
    /// Stop denying binds after a `run --fail-closed`
    Unpin(unpin::Args),
    /// Take a port for a second, to see a first alert (needs root)
    Demo(demo::Args),
    /// Print a shell's completion script
    Completions(completions::Args),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::Args),
    /// Run one scenario of the conformance suite
    #[command(hide = true)]
    RunScenario(run_scenario::Args),
    /// Print the registry's date and counts, or compare it with a newer one
    Registry(registry::Args),
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    contained::abort_on_panic();
    exit::report(dispatch(Cli::parse())).into()
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let out = &mut io::stdout();
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => run::run(args, out),
        Command::Explain(args) => explain::run(args, out),
        Command::List(args) => list::run(args, out),
        Command::Doctor(args) => doctor::run(args, out),
        Command::CheckConfig(args) => check_config::run(args, out),
        Command::ExplainAlert(args) => explain_alert::run(args, out),
        Command::Unpin(args) => unpin::run(args, out),
        Command::Demo(args) => demo::run(&args, out),
        Command::Completions(args) => completions::run(&args, Cli::command(), out),
        Command::Man(args) => man::run(&args, Cli::command()),
        Command::RunScenario(args) => run_scenario::run(args, out),
        Command::Registry(args) => registry::run(args, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_long_version_has_what_a_bug_report_needs() {
        let version = Cli::command().render_long_version();
        for key in [
            "\ncommit ",
            "\ntarget ",
            "\nregistry of 2",
            "\nalert schema ",
        ] {
            assert!(version.contains(key), "{version}");
        }
        assert_eq!(Cli::command().render_version().lines().count(), 1);
    }

    #[test]
    fn a_bare_call_and_run_take_the_same_options() {
        let options = ["--format", "json", "--all", "--no-aggregate", "--dry-run"];
        let bare = Cli::parse_from(["portwatch"].iter().chain(&options));
        assert!(bare.command.is_none());
        let run = Cli::parse_from(["portwatch", "run"].iter().chain(&options));
        let Some(Command::Run(args)) = run.command else {
            panic!("not run")
        };
        assert_eq!(format!("{:?}", bare.run), format!("{args:?}"));
        let default = Cli::parse_from(["portwatch"]);
        assert_ne!(format!("{:?}", default.run), format!("{args:?}"));
    }
}
