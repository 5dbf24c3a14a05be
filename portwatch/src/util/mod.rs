//! Helpers without knowledge of ports: bounded maps, parallel iteration, stderr.
#![forbid(unsafe_code)]

mod bounded;
pub mod console;
pub mod parallel;

pub use self::bounded::{Bounded, ByteBounded};
