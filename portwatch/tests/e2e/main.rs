//! End-to-end tests on this host's kernel: the monitor as a child process, real sockets in network
//! namespaces that the tests create, the alerts on the monitor's stdout. Needs root:
//! `cargo xtask test`. tests/README.md says how to write one.

// clippy.toml exempts test functions only, and all of this is test code.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod aggregation;
mod bounds;
mod claims;
mod commands;
mod compatibility;
mod connections;
mod counted;
mod deny;
mod deny_random;
mod doctor;
mod errors;
mod escaping;
mod fail_closed;
mod guarantee;
mod health;
mod identity;
mod lifecycle;
mod load;
mod loss;
mod no_alert;
mod receive;
mod rules;
mod sandbox;
mod service;
mod sessions;
mod snapshot;
mod support;
mod tamper;
mod where_reached;
mod who;
