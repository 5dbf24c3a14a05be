//! Brings the eBPF object into the kernel.

use std::{collections::BTreeMap, io, os::fd::AsFd, thread};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData},
    programs::{CgroupAttachMode, Program, ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use caps::{CapSet, Capability};
use portwatch_common::{Layout, SYSTEM_PORTS, names, watch_bit};

use super::SensorError;
use crate::model::Transport;

/// What this kernel lets `sock_ops` programs ask for; asked of the kernel, not of its version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Helpers {
    /// The current task, with its user and cgroup.
    pub(super) task: bool,
    /// The socket's network namespace.
    pub(super) netns: bool,
}

impl Helpers {
    pub(super) fn probe() -> Self {
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

/// Loads the programs, at once: most of an agent's start is the kernel's verifier, and nothing keeps it
/// from verifying several.
pub(super) fn load_programs<'a>(
    programs: impl Iterator<Item = (&'a str, &'a mut Program)>,
) -> Result<(), SensorError> {
    thread::scope(|scope| {
        let loading: Vec<_> = programs
            .map(|(name, program)| (name, scope.spawn(|| load_program(program))))
            .collect();
        for (name, loading) in loading {
            let loaded = loading
                .join()
                .map_err(|_| SensorError::kernel(name, &io::Error::other("loading it failed")))?;
            loaded.map_err(|error| SensorError::program(name, error))?;
        }
        Ok(())
    })
}

/// Loads one of the object's programs.
pub(super) fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches one of the object's programs for as long as the object lives.
pub(super) fn attach_program(program: &mut Program, cgroup: impl AsFd) -> Result<(), ProgramError> {
    // A link is multi-attach by nature; the kernel refuses any other mode's flags.
    let mode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSock(program) => program.attach(cgroup, mode).map(drop),
        Program::SockOps(program) => program.attach(cgroup, mode).map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

pub(super) fn check_ring_size(size: u32) -> Result<(), SensorError> {
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

/// What `bpf(2)` asks for, each of which CAP_SYS_ADMIN includes: CAP_BPF; CAP_NET_ADMIN for these
/// types of program; CAP_PERFMON for pointers into what a helper returned.
pub(super) fn check_privileges() -> Result<(), SensorError> {
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

/// Loads the object's maps, with the branches that this kernel's helpers rule out switched off.
pub(super) fn load(
    loader: EbpfLoader<'_>,
    object: &[u8],
    ring_size: u32,
    layout: &Layout,
) -> Result<Ebpf, SensorError> {
    let Helpers { task, netns } = Helpers::probe();
    let (task, netns) = (u8::from(task), u8::from(netns));
    // Its globals are borrowed from here.
    let mut loader = loader;
    loader
        .override_global(names::SOCK_OPS_TASK, &task, true)
        .override_global(names::SOCK_OPS_NETNS, &netns, true)
        .override_global(names::LAYOUT, bytemuck::bytes_of(layout), true)
        .map_max_entries(names::RING, ring_size)
        .load(object)
        .map_err(|error| SensorError::object(&error))
}

/// A form of the kernel side's own, which aya must be told is plain bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: a transparent wrapper of a `bytemuck::Pod`, which has no padding and takes any bytes.
unsafe impl<T: bytemuck::Pod> Pod for Plain<T> {}

/// Converts a map of the object, if it has one, to the type that it is.
pub(super) fn map<M, T, E: std::error::Error>(
    map: Option<M>,
    name: &str,
    convert: impl FnOnce(M) -> Result<T, E>,
) -> Result<T, SensorError> {
    let map = map.ok_or_else(|| {
        SensorError::kernel(
            "the eBPF object",
            &io::Error::other(format!("has no map {name}")),
        )
    })?;
    convert(map).map_err(|error| SensorError::kernel(&format!("the map {name}"), &error))
}

/// The bits of each port, as the kernel side has them.
pub(super) type Watched = BTreeMap<u16, u32>;

/// Tells the kernel side which (port, transport) to report, where that differs from `before`.
pub(super) fn fill(
    ebpf: &mut Ebpf,
    before: &Watched,
    watched: impl Iterator<Item = (u16, Transport)>,
) -> Result<Watched, SensorError> {
    let mut now = Watched::new();
    for (port, transport) in watched {
        *now.entry(port).or_default() |= watch_bit(transport.protocol());
    }
    let mut map: Array<&mut MapData, u32> = map(
        ebpf.map_mut(names::WATCHED),
        names::WATCHED,
        Array::try_from,
    )?;
    for port in 0..SYSTEM_PORTS as u16 {
        let [before, now] = [before, &now].map(|bits| bits.get(&port).copied().unwrap_or(0));
        if before != now {
            map.set(port.into(), now, 0)
                .map_err(|error| SensorError::kernel("the watched ports", &error))?;
        }
    }
    Ok(now)
}
