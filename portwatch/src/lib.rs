//! portwatch tells an operator what has taken a system port (0-1023) that IANA has not assigned.
//!
//! The rooms, in the order in which the data flows: the kernel side's reports and what was there
//! before them ([`sensor`], [`snapshot`], [`survey`]) become [`event::Event`]s; [`occupancy`] joins them into
//! a socket's stay on a port and asks [`registry`], [`process`] and [`policy`] what an
//! [`alert::Alert`] should say; [`output`] prints it. [`run`] holds them together.

pub mod alert;
pub mod bounded;
pub mod cli;
pub mod collapse;
pub mod config_commands;
pub mod doctor;
pub mod event;
pub mod exit;
pub mod explain;
pub mod host;
pub mod list;
pub mod occupancy;
pub mod output;
pub mod parallel;
#[doc(hidden)]
pub mod parts;
pub mod paths;
pub mod policy;
pub mod printable;
pub mod process;
pub mod registry;
pub mod run;
pub mod sensor;
pub mod snapshot;
pub mod survey;
