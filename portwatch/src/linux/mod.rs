//! Facts about this kernel that several modules need: the cgroup hierarchy, mounts, processes,
//! network namespaces, registered protocols, address encodings.

pub mod address;
pub mod cgroup;
pub mod clock;
pub mod devices;
pub mod hierarchy;
pub mod mountinfo;
pub mod netns;
pub mod protocols;
pub mod stat;
