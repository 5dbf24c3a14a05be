//! Loads and attaches the kernel side and reads its ring buffer. Nothing else knows aya.

mod cgroup;
#[cfg(feature = "debug")]
mod debug;
mod decode;
mod error;

use std::{io, path::PathBuf};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, PerCpuArray, RingBuf},
    programs::{CgroupAttachMode, Program, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use caps::{CapSet, Capability};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use portwatch_common::{
    PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_UDPLITE, SYSTEM_PORTS, names, watch_bit,
};
use tokio::io::{Interest, unix::AsyncFd};

use self::{
    cgroup::Cgroup,
    decode::{Clock, decode},
};
pub use self::{cgroup::mounted as cgroup_root, error::SensorError};
use crate::event::{Event, Transport};

/// The eBPF object, aligned as its loader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portwatch-ebpf"));

/// How to arm.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the ring buffer in bytes: a power of two, at least a page.
    pub ring_size: u32,
    /// The cgroup to watch; None for all of the host.
    pub cgroup: Option<PathBuf>,
}

/// The transports that these hooks see.
pub const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpLite];

/// The kernel side, armed; dropping it detaches.
pub struct Sensor {
    /// Holds the programs and their links; None once disarmed.
    ebpf: Option<Ebpf>,
    ring: AsyncFd<RingBuf<MapData>>,
    lost: PerCpuArray<MapData, u64>,
    lost_before: u64,
    cgroup: String,
    programs: usize,
}

impl Sensor {
    /// Loads and attaches the kernel side, to report what happens on the `watched` ports. Events
    /// are collected from the moment this returns. To be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`SensorError`], which says what the kernel or the caller must change.
    pub fn arm(
        options: &Options,
        watched: impl Iterator<Item = (u16, Transport)>,
    ) -> Result<Self, SensorError> {
        Self::arm_object(OBJECT, options, watched)
    }

    /// The eBPF object that [`arm`](Self::arm) loads.
    #[doc(hidden)]
    #[must_use]
    pub fn object() -> &'static [u8] {
        OBJECT
    }

    /// As [`arm`](Self::arm), with another object: how tests meet a kernel that refuses one.
    #[doc(hidden)]
    pub fn arm_object(
        object: &[u8],
        options: &Options,
        watched: impl Iterator<Item = (u16, Transport)>,
    ) -> Result<Self, SensorError> {
        check_ring_size(options.ring_size)?;
        check_privileges()?;
        let Cgroup { fd: cgroup, label } = cgroup::open(options.cgroup.as_deref())?;
        // Before Linux 5.11 maps count as locked memory. Where this is refused it is not needed.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);

        let mut ebpf = load(object, options.ring_size)?;
        fill(&mut ebpf, watched)?;
        let ring = map(ebpf.take_map(names::RING), names::RING, RingBuf::try_from)?;
        // SAFETY: `RingBuf` owns the descriptor of its map, returns no other, and keeps it open
        // until it is dropped, which it is after the registration.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| SensorError::kernel("waiting for the ring buffer", &error))?;
        let lost = map(
            ebpf.take_map(names::LOST),
            names::LOST,
            PerCpuArray::try_from,
        )?;

        // All are loaded before any is attached, so that a refusal leaves nothing behind.
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::CgroupSock(program) => program.load(),
                Program::SockOps(program) => program.load(),
                _ => continue,
            }
            .map_err(|error| SensorError::program(name, error))?;
        }
        let mut programs = 0;
        for (name, program) in ebpf.programs_mut() {
            // A link is multi-attach by nature; the kernel refuses any other mode's flags.
            let mode = CgroupAttachMode::Single;
            match program {
                Program::CgroupSock(program) => program.attach(&cgroup, mode).map(drop),
                Program::SockOps(program) => program.attach(&cgroup, mode).map(drop),
                _ => continue,
            }
            .map_err(|error| SensorError::attach(name, &error))?;
            programs += 1;
        }
        #[cfg(feature = "debug")]
        debug::forward_log(&mut ebpf);
        Ok(Self {
            ebpf: Some(ebpf),
            ring,
            lost,
            lost_before: 0,
            cgroup: label,
            programs,
        })
    }

    /// The cgroup that is watched, for people.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// How many programs are attached.
    #[must_use]
    pub const fn programs(&self) -> usize {
        self.programs
    }

    /// Waits until the ring may hold reports.
    ///
    /// # Errors
    ///
    /// The I/O driver's.
    pub async fn readable(&mut self) -> io::Result<()> {
        // `next` reads on until the ring is empty; what comes after that makes a new edge.
        self.ring.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Takes the reports that are in the ring now, oldest first, `limit` at most.
    pub fn take(&mut self, limit: usize, events: &mut Vec<Event>) {
        let clock = Clock::now();
        let ring = self.ring.get_mut();
        for _ in 0..limit {
            let Some(record) = ring.next() else { break };
            events.extend(decode(&record, clock));
        }
    }

    /// How many reports found the ring full since the last call.
    ///
    /// # Errors
    ///
    /// The kernel's, when the counter cannot be read.
    pub fn newly_lost(&mut self) -> Result<u64, SensorError> {
        let slots = self
            .lost
            .get(&0, 0)
            .map_err(|error| SensorError::kernel("reading the counter of lost reports", &error))?;
        let lost = slots.iter().sum::<u64>();
        let newly = lost - self.lost_before;
        self.lost_before = lost;
        Ok(newly)
    }

    /// Detaches the programs; what is in the ring stays readable.
    pub fn disarm(&mut self) {
        self.ebpf = None;
    }
}

fn check_ring_size(size: u32) -> Result<(), SensorError> {
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

/// What `bpf(2)` asks for: CAP_BPF and CAP_NET_ADMIN, each of which CAP_SYS_ADMIN includes.
fn check_privileges() -> Result<(), SensorError> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    if has(Capability::CAP_SYS_ADMIN) {
        return Ok(());
    }
    let missing: Vec<String> = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN]
        .into_iter()
        .filter(|capability| !has(*capability))
        .map(|capability| capability.to_string())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(SensorError::Privilege {
        missing: missing.join(" and "),
    })
}

/// Loads the object's maps, with the branches that this kernel's helpers rule out switched off.
fn load(object: &[u8], ring_size: u32) -> Result<Ebpf, SensorError> {
    let supported = |helpers: &[BpfHelper]| {
        helpers
            .iter()
            .all(|helper| is_helper_supported(ProgramType::SockOps, *helper).unwrap_or(false))
    };
    let task = u8::from(supported(&[
        BpfHelper::BPF_FUNC_get_current_pid_tgid,
        BpfHelper::BPF_FUNC_get_current_uid_gid,
        BpfHelper::BPF_FUNC_get_current_comm,
        BpfHelper::BPF_FUNC_get_current_cgroup_id,
    ]));
    let netns = u8::from(supported(&[BpfHelper::BPF_FUNC_get_netns_cookie]));
    EbpfLoader::new()
        .override_global(names::SOCK_OPS_TASK, &task, true)
        .override_global(names::SOCK_OPS_NETNS, &netns, true)
        .map_max_entries(names::RING, ring_size)
        .load(object)
        .map_err(|error| SensorError::object(&error))
}

/// Converts a map of the object, if it has one, to the type that it is.
fn map<M, T, E: std::error::Error>(
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

/// Tells the kernel side which (port, transport) to report.
fn fill(
    ebpf: &mut Ebpf,
    watched: impl Iterator<Item = (u16, Transport)>,
) -> Result<(), SensorError> {
    let mut bits = [0; SYSTEM_PORTS as usize];
    for (port, transport) in watched {
        if let Some(bits) = bits.get_mut(usize::from(port)) {
            *bits |= watch_bit(match transport {
                Transport::Tcp => PROTOCOL_TCP,
                Transport::Udp => PROTOCOL_UDP,
                Transport::UdpLite => PROTOCOL_UDPLITE,
                Transport::Sctp | Transport::Dccp => 0,
            });
        }
    }
    let mut map: Array<&mut MapData, u32> = map(
        ebpf.map_mut(names::WATCHED),
        names::WATCHED,
        Array::try_from,
    )?;
    for (port, bits) in (0..).zip(bits).filter(|(_, bits)| *bits != 0) {
        map.set(port, bits, 0)
            .map_err(|error| SensorError::kernel("the watched ports", &error))?;
    }
    Ok(())
}
