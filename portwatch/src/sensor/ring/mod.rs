//! The ring buffer: when it is read, and what its records mean.

mod control;
pub(super) mod decode;
mod exec_info;
mod positions;
mod sessions;
mod wake;

pub(super) use self::{
    control::Shared,
    decode::{Clock, Decoder},
    wake::Wake,
};
