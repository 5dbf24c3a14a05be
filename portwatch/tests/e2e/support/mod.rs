//! The monitor and helper programs as child processes; network namespaces and cgroups for them.

pub mod bpf;
mod cgroup;
mod helper;
mod monitor;
mod namespace;
mod perl;

pub use self::{
    cgroup::{Cgroup, cgroup_root},
    helper::Helper,
    monitor::{Monitor, Unread, binary, copy_program, finish, listed, run, totals},
    namespace::{Namespace, in_namespace},
    perl::{REBIND, bind_and_close, perl},
};

/// Compares fields of an alert, each named by its JSON pointer without the first `/`.
#[macro_export]
macro_rules! assert_alert {
    ($alert:expr, { $($path:expr => $value:expr),+ $(,)? }) => {{
        let alert: &serde_json::Value = &$alert;
        $(assert_eq!(
            alert.pointer(concat!("/", $path)),
            Some(&serde_json::json!($value)),
            "{} of {alert}", $path
        );)+
    }};
}
