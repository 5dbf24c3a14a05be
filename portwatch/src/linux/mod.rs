//! Facts about this kernel that several modules need: the cgroup hierarchy, network namespaces,
//! registered protocols, address encodings.
#![forbid(unsafe_code)]

pub mod address;
pub mod cgroup;
pub mod netns;
pub mod protocols;
