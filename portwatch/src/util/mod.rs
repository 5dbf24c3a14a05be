//! Helpers that know nothing of ports: a bounded map, a thread pool for one call, stderr.
#![forbid(unsafe_code)]

mod bounded;
pub mod console;
pub mod parallel;

pub use self::bounded::Bounded;
