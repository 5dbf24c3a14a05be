//! The agent as a child, and namespaces and cgroups to bind in.

mod agent;
mod cgroup;
mod dialogue;
mod namespace;
mod perl;

pub use self::{
    agent::{Agent, binary, copy_program, finish, run},
    cgroup::{Cgroup, cgroup_root},
    dialogue::Dialogue,
    namespace::{Namespace, in_namespace},
    perl::{TAKE, binds, perl},
};

/// The part of an alert that most tests compare.
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
