//! End to end, on this host's real kernel: the agent as a child process, real sockets in network
//! namespaces of the tests' own, the agent's real stdout. Needs root: `cargo xtask test`.

// clippy.toml exempts test functions only, and all of this is tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod bad_days;
mod commands;
mod flood;
mod health;
mod identity;
mod life;
mod loss;
mod names;
mod quiet;
mod refusal;
mod rules;
mod silence;
mod snapshot;
mod support;
