//! How the process ends: the codes that the help text and the README document.

use std::process::ExitCode;

use crate::{
    commands::{
        doctor::{NotCovered, Unfit},
        list::Taken,
    },
    output::StdoutGone,
    policy::ConfigError,
    registry::ReadError,
    sensor::SensorError,
};

/// Why the process ends, as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or stopped by SIGINT or SIGTERM.
    Success = 0,
    /// Something that has no code of its own.
    Failure = 1,
    /// Arguments that make no sense.
    Usage = 2,
    /// Not root, or a capability is missing.
    Privilege = 3,
    /// The kernel cannot do it or refused: no cgroup v2, too old, a program refused.
    Kernel = 4,
    /// An input file is missing or malformed.
    Input = 5,
    /// Stdout takes no more: its reader went away, or its disk is full.
    Stdout = 6,
    /// The self-test failed.
    NotCovered = 7,
    /// `list --check` found something.
    Taken = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An argument that clap could not judge.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Input that makes no sense, with its place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InputError(pub String);

/// The exit code that an error stands for.
#[must_use]
pub fn of(error: &anyhow::Error) -> Exit {
    if error.is::<UsageError>() {
        Exit::Usage
    } else if error.is::<ReadError>() || error.is::<ConfigError>() || error.is::<InputError>() {
        Exit::Input
    } else if let Some(unfit) = error.downcast_ref::<Unfit>() {
        if unfit.is_privilege() {
            Exit::Privilege
        } else {
            Exit::Kernel
        }
    } else if error.is::<Taken>() {
        Exit::Taken
    } else if error.is::<NotCovered>() {
        Exit::NotCovered
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
