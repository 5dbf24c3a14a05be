//! The programs, by the hooks that they are attached to.

mod bind;
mod receive;
mod release;
mod state;
mod tcp;
