//! The programs, by the hooks that they are attached to.

mod before_bind;
mod bind;
mod release;
mod state;
mod tcp;

/// Lets a bind go on, or stand.
const ALLOW: i32 = 1;
/// Makes bind(2) return EPERM.
const DENY: i32 = 0;
