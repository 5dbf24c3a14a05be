//! Helpers without knowledge of ports: bounded maps, parallel iteration, input files, escaping, stderr.
#![forbid(unsafe_code)]

mod bounded;
pub mod console;
pub mod contained;
mod escape;
pub mod input;
pub mod parallel;

pub use self::{
    bounded::{Bounded, ByteBounded},
    escape::{escape_lines, escape_to, escape_while, quote},
};
