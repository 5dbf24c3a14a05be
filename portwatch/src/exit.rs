//! How the process ends: the error's message on stderr, and the exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use crate::{
    commands::{
        InputError, UsageError,
        doctor::{SelfTestFailed, Unfit},
        list::Taken,
    },
    config::ConfigError,
    output::StdoutGone,
    registry::ReadError,
    sensor::SensorError,
    util::{console, input},
};

/// The exit codes, for the help text.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  success; stopped by SIGINT or SIGTERM
  1  any other failure
  2  invalid arguments
  3  not root, or a capability is missing
  4  the kernel lacks a feature or rejected a request
  5  an input file is missing or malformed
  6  stdout closed or full
  7  `doctor --self-test`: a scenario failed
  8  `list --check`: a watched port is in use
  9  somebody else can change an input file, which is not used";

/// Why the process ends, as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success, or stopped by SIGINT or SIGTERM.
    Success = 0,
    /// Any failure without a code of its own.
    Failure = 1,
    /// Invalid arguments.
    Usage = 2,
    /// Not root, or a capability is missing.
    Privilege = 3,
    /// The kernel lacks a feature (cgroup v2, BPF) or rejected a request.
    Kernel = 4,
    /// An input file is missing or malformed.
    Input = 5,
    /// Stdout closed or full.
    Stdout = 6,
    /// The self-test failed.
    SelfTest = 7,
    /// `list --check`: a watched port is in use.
    InUse = 8,
    /// Somebody else can change an input file.
    Untrusted = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Logs the error, unless it is a closed stdout, and returns the exit code.
#[must_use]
pub fn report(result: anyhow::Result<()>) -> Exit {
    let Err(error) = result else {
        return Exit::Success;
    };
    let is_silent = error
        .downcast_ref::<StdoutGone>()
        .is_some_and(StdoutGone::is_silent);
    if !is_silent {
        console::error(&format!("{error:#}"));
    }
    code(&error)
}

fn code(error: &anyhow::Error) -> Exit {
    if error.is::<UsageError>() {
        Exit::Usage
    } else if is_untrusted(error) {
        Exit::Untrusted
    } else if error.is::<ReadError>() || error.is::<ConfigError>() || error.is::<InputError>() {
        Exit::Input
    } else if let Some(unfit) = error.downcast_ref::<Unfit>() {
        if unfit.is_privilege() {
            Exit::Privilege
        } else {
            Exit::Kernel
        }
    } else if error.is::<Taken>() {
        Exit::InUse
    } else if error.is::<SelfTestFailed>() {
        Exit::SelfTest
    } else if error.is::<StdoutGone>() {
        Exit::Stdout
    } else if let Some(error) = error.downcast_ref::<SensorError>() {
        match error {
            SensorError::Privilege { .. } => Exit::Privilege,
            SensorError::RingSize { .. } => Exit::Usage,
            _ => Exit::Kernel,
        }
    } else {
        Exit::Failure
    }
}

fn is_untrusted(error: &anyhow::Error) -> bool {
    let of_config = error.downcast_ref::<ConfigError>();
    let of_registry = error.downcast_ref::<ReadError>();
    matches!(
        of_config,
        Some(ConfigError::File(input::InputError::Untrusted { .. }))
    ) || matches!(
        of_registry,
        Some(ReadError::Input(input::InputError::Untrusted { .. }))
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::Source, registry::Registry};

    #[test]
    fn an_unreadable_input_file_is_named_with_the_cause_once() {
        let path = Path::new("/no/such/file");
        let source = Source {
            path: Some(path.into()),
            ..Source::default()
        };
        let errors = [
            anyhow::Error::from(source.load().unwrap_err()),
            Registry::from_csv(path, None).unwrap_err().into(),
        ];
        for error in errors {
            assert_eq!(
                format!("{error:#}"),
                "cannot read /no/such/file: No such file or directory (os error 2)"
            );
            assert_eq!(code(&error), Exit::Input);
        }
    }

    #[test]
    fn every_code_is_in_the_help_text() {
        let documented: Vec<u8> = EXIT_CODES
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
            .collect();
        let all: Vec<u8> = (Exit::Success as u8..=Exit::Untrusted as u8).collect();
        assert_eq!(documented, all);
    }
}
