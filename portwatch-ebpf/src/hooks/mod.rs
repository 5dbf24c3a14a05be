//! The programs, by the hooks that they are attached to.

mod before_bind;
mod bind;
mod receive;
mod release;
mod state;
mod tcp;
