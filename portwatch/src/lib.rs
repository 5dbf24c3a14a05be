//! portwatch reports what has taken a system port (0-1023) that IANA has not assigned.
//!
//! docs/architecture.md shows the levels of these modules; `levels.rs` tests them.

mod aggregate;
mod alert;
pub mod cli;
mod commands;
mod config;
pub mod conformance;
mod decide;
mod exit;
mod inventory;
#[cfg(test)]
mod levels;
mod linux;
mod model;
mod monitor;
mod output;
mod pipeline;
mod policy;
mod process;
mod registry;
mod sandbox;
mod sensor;
#[cfg(feature = "testing")]
pub mod testing;
mod tracker;
mod util;
