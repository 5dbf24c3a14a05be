//! The capabilities that stay.
#![forbid(unsafe_code)]

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// What an armed monitor needs, and what for.
pub(super) const KEPT: [Capability; 5] = [
    // Maps, and links for programs that somebody detached.
    Capability::CAP_BPF,
    // The tracepoint, should SCTP or DCCP be loaded later.
    Capability::CAP_PERFMON,
    // To attach to cgroups, and to ask what is attached.
    Capability::CAP_NET_ADMIN,
    // /proc/PID of others, and pidfd_getfd(2) to mark existing sockets.
    Capability::CAP_SYS_PTRACE,
    // open_by_handle_at(2) for cgroups, and /proc/PID of others.
    Capability::CAP_DAC_READ_SEARCH,
];

/// Gives up all but those in [`KEPT`], of the calling thread and of threads that it starts. Where the
/// monitor `raises_priority` by a capability, it keeps that one too.
pub(super) fn drop_others(raises_priority: bool) -> Result<(), String> {
    let further = raises_priority.then_some(Capability::CAP_SYS_NICE);
    let kept: Vec<Capability> = KEPT.into_iter().chain(further).collect();
    keep(&kept)
}

/// Gives up all capabilities but `kept`, also in the sets from which a new program would get some.
pub(super) fn keep(kept: &[Capability]) -> Result<(), String> {
    let text = |error: CapsError| error.to_string();
    let permitted = caps::read(None, CapSet::Permitted).map_err(text)?;
    let kept: CapsHashSet = permitted
        .iter()
        .copied()
        .filter(|capability| kept.contains(capability))
        .collect();
    // First, since it takes CAP_SETPCAP.
    let bounding = shrink_bounding_set(&kept);
    caps::clear(None, CapSet::Ambient).map_err(text)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(text)?;
    caps::set(None, CapSet::Effective, &kept).map_err(text)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(text)?;
    bounding
}

fn shrink_bounding_set(kept: &CapsHashSet) -> Result<(), String> {
    let bounding = caps::read(None, CapSet::Bounding).map_err(|error| error.to_string())?;
    for capability in bounding.difference(kept) {
        caps::drop(None, CapSet::Bounding, *capability)
            .map_err(|error| format!("the bounding set: {error}"))?;
    }
    Ok(())
}

/// Those of [`KEPT`] that this process does not have.
pub(super) fn missing() -> Vec<Capability> {
    let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let missing = KEPT.into_iter().filter(|one| !permitted.contains(one));
    missing.collect()
}

/// Whether this thread can use that one.
pub(super) fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}
