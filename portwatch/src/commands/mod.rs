//! The subcommands, one file each.

pub mod check_config;
pub mod doctor;
pub mod explain;
pub mod list;
