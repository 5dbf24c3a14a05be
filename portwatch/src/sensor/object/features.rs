//! What this host offers to the sensor: read once, for arming and for `doctor`.
#![forbid(unsafe_code)]

use std::thread;

use aya::{
    EbpfLoader,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use caps::{CapSet, Capability};
use portwatch_common::KernelOffsets;

use super::offsets::{OffsetsError, of_this_kernel};
use crate::{
    model::Transport,
    sensor::{SensorError, attach},
};

/// The features of the running host that the sensor depends on.
pub(in crate::sensor) struct HostFeatures {
    /// The kernel's release.
    pub(in crate::sensor) release: String,
    /// The helpers that `sock_ops` programs may call.
    pub(in crate::sensor) helpers: AvailableHelpers,
    /// Where the kernel keeps the exec info, or why that is not known.
    pub(in crate::sensor) kernel_offsets: Result<KernelOffsets, OffsetsError>,
    /// Which of SCTP and DCCP the kernel has registered, for which there is a tracepoint.
    pub(in crate::sensor) tracepoint_transports: Vec<Transport>,
}

impl HostFeatures {
    /// Reads them. Also a loader, since it reads the kernel's type information too, which takes as
    /// long.
    pub(in crate::sensor) fn read() -> (Self, EbpfLoader<'static>) {
        let (kernel_offsets, loader) = thread::scope(|scope| {
            let offsets = scope.spawn(of_this_kernel);
            let loader = EbpfLoader::new();
            (offsets.join(), loader)
        });
        let features = Self {
            release: crate::sensor::error::release(),
            helpers: AvailableHelpers::probe(),
            kernel_offsets: kernel_offsets.unwrap_or(Err(OffsetsError::Failed)),
            tracepoint_transports: attach::tracepoint::registered(),
        };
        (features, loader)
    }

    /// The kernel's offsets, unknown where they are missing.
    pub(in crate::sensor) fn offsets(&self) -> KernelOffsets {
        *self
            .kernel_offsets
            .as_ref()
            .unwrap_or(&KernelOffsets::UNKNOWN)
    }

    /// Why the BPF programs read no exec info; None where they do.
    pub(in crate::sensor) fn exec_info_error(&self) -> Option<String> {
        self.kernel_offsets.as_ref().err().map(ToString::to_string)
    }
}

/// The helpers that this kernel allows in `sock_ops` programs, tried out: never by its version.
#[derive(Clone, Copy, Debug)]
pub(in crate::sensor) struct AvailableHelpers {
    /// Those that ask for the current task, its user and its cgroup (not before Linux 6.18).
    pub(in crate::sensor) task: bool,
    /// `bpf_get_netns_cookie` (not on Linux 5.10).
    pub(in crate::sensor) netns: bool,
}

impl AvailableHelpers {
    fn probe() -> Self {
        let supported = |helpers: &[BpfHelper]| {
            helpers
                .iter()
                .all(|helper| is_helper_supported(ProgramType::SockOps, *helper).unwrap_or(false))
        };
        Self {
            task: supported(&[
                BpfHelper::BPF_FUNC_get_current_pid_tgid,
                BpfHelper::BPF_FUNC_get_current_uid_gid,
                BpfHelper::BPF_FUNC_get_current_comm,
                BpfHelper::BPF_FUNC_get_current_cgroup_id,
            ]),
            netns: supported(&[BpfHelper::BPF_FUNC_get_netns_cookie]),
        }
    }
}

pub(in crate::sensor) fn check_ring_size(size: u32) -> Result<(), SensorError> {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten();
    let minimum = page
        .and_then(|page| u32::try_from(page).ok())
        .unwrap_or(4096);
    if size.is_power_of_two() && (minimum..=1 << 30).contains(&size) {
        return Ok(());
    }
    Err(SensorError::RingSize { size, minimum })
}

/// What `bpf(2)` requires (since Linux 5.8), each of which CAP_SYS_ADMIN includes: CAP_BPF; CAP_NET_ADMIN for these
/// types of program; CAP_PERFMON for pointers into what a helper returned.
pub(in crate::sensor) fn check_privileges() -> Result<(), SensorError> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    if has(Capability::CAP_SYS_ADMIN) {
        return Ok(());
    }
    let missing: Vec<String> = [
        Capability::CAP_BPF,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_PERFMON,
    ]
    .into_iter()
    .filter(|capability| !has(*capability))
    .map(|capability| capability.to_string())
    .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(SensorError::Privilege {
        missing: missing.join(", "),
    })
}
