//! Loads and attaches the kernel side and reads its ring buffer. Nothing else knows aya.

mod cgroup;
mod control;
#[cfg(feature = "debug")]
mod debug;
mod decode;
mod error;
mod health;
mod hooks;
mod layout;
mod load;
mod occupants;
mod pin;
mod probe;
mod refuse;
mod repeats;
#[cfg(feature = "testing")]
mod testing;
mod tracepoint;
mod wake;

use std::{
    collections::BTreeSet,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, RingBuf},
    programs::{Program, links::PinnedLink},
};
use jiff::Timestamp;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use portwatch_common::{Layout, names};

#[cfg(feature = "testing")]
pub use self::testing::Records;
use self::{
    cgroup::Cgroup,
    control::Shared,
    decode::{Clock, Decoder},
    load::{
        Watched, attach_program, check_privileges, check_ring_size, fill, load, load_programs, map,
    },
    occupants::Occupants,
    repeats::Repeats,
    wake::Wake,
};
pub use self::{
    error::SensorError,
    health::Health,
    occupants::ExistingSocket,
    pin::{is_pinned, unpin},
    probe::{Check, PRIVILEGES, probe},
    tracepoint::Tracepoint,
};
use crate::model::{DenyRules, Event, Transport};

/// The eBPF object, aligned as its loader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portwatch-ebpf"));

/// How to arm.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the ring buffer in bytes: a power of two, at least a page.
    pub ring_size: u32,
    /// The cgroup to watch; None for all of the host.
    pub cgroup: Option<PathBuf>,
    /// Whether what is refused stays refused when the agent ends.
    pub fail_closed: bool,
}

/// The transports that the cgroup hooks see.
const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpLite];

/// The kernel side, armed; dropping it detaches.
pub struct Sensor {
    /// Holds the programs and their links; None once disarmed.
    ebpf: Option<Ebpf>,
    wake: Wake,
    repeats: Repeats,
    decoder: Decoder,
    /// Cgroups of refusals that are not there.
    missing_cgroups: Vec<String>,
    occupants: Occupants,
    /// Why processes are told by what /proc still shows; None where their images are read.
    exec_info_error: Option<String>,
    cgroup: String,
    programs: usize,
    tracepoint: Tracepoint,
    /// Where the programs are attached.
    cgroup_fd: OwnedFd,
    /// The programs that could not be attached again.
    missing: BTreeSet<&'static str>,
    watched: Watched,
    /// Links that stay when this goes.
    _pinned: Vec<PinnedLink>,
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
        refusals: &DenyRules,
    ) -> Result<Self, SensorError> {
        Self::arm_object(OBJECT, options, watched, refusals)
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
        refusals: &DenyRules,
    ) -> Result<Self, SensorError> {
        check_ring_size(options.ring_size)?;
        check_privileges()?;
        let Cgroup { fd: cgroup, label } = cgroup::open(options.cgroup.as_deref())?;
        // Before Linux 5.11 maps count as locked memory. Where this is refused it is not needed.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);

        // Both read all of the kernel's type information.
        let (layout, loader) = thread::scope(|scope| {
            let layout = scope.spawn(layout::of_this_kernel);
            let loader = EbpfLoader::new();
            (layout.join(), loader)
        });
        let (layout, exec_info_error) = match layout {
            Ok(Ok(layout)) => (layout, None),
            Ok(Err(error)) => (Layout::UNKNOWN, Some(error.to_string())),
            Err(_) => (Layout::UNKNOWN, Some("reading it failed".into())),
        };
        let mut ebpf = load(loader, object, options.ring_size, &layout)?;
        let watched = fill(&mut ebpf, &Watched::default(), watched)?;
        let missing_cgroups = refuse::set(&mut ebpf, refusals)?;
        let ring = map(ebpf.take_map(names::RING), names::RING, RingBuf::try_from)?;
        let control = map(ebpf.map(names::CONTROL), names::CONTROL, |map| match map {
            Map::Array(data) => Ok(data),
            _ => Err(io::Error::other("is no array")),
        })?;
        let control = Shared::map(control)
            .map(Rc::new)
            .map_err(|error| SensorError::kernel("mapping what both sides see", &error))?;
        let wake = Wake::new(ring, Rc::clone(&control))
            .map_err(|error| SensorError::kernel("waiting for the ring buffer", &error))?;
        let repeats = Repeats::of(&mut ebpf, control, options.ring_size)?;

        let occupants = Occupants::of(&mut ebpf)?;

        // All are loaded before any is attached, so that a refusal leaves nothing behind.
        load_programs(required(&mut ebpf))?;
        let mut programs = 0;
        let mut pinned = Vec::new();
        for (name, program) in required(&mut ebpf) {
            let refusing = pin::PROGRAMS.into_iter().find(|refusing| *refusing == name);
            match refusing.filter(|_| options.fail_closed) {
                Some(name) => pinned.push(pin::attach(name, program, &cgroup)?),
                None => attach_program(program, &cgroup)
                    .map_err(|error| SensorError::attach(name, &error))?,
            }
            programs += 1;
        }
        let tracepoint = Tracepoint::attach(&mut ebpf);
        #[cfg(feature = "debug")]
        debug::forward_log(&mut ebpf);
        Ok(Self {
            ebpf: Some(ebpf),
            wake,
            repeats,
            decoder: Decoder::new(),
            missing_cgroups,
            occupants,
            exec_info_error,
            cgroup: label,
            programs,
            tracepoint,
            cgroup_fd: cgroup,
            missing: BTreeSet::new(),
            watched,
            _pinned: pinned,
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

    /// The transports that are covered.
    pub fn transports(&self) -> impl Iterator<Item = Transport> {
        TRANSPORTS
            .into_iter()
            .chain(self.tracepoint.transports().iter().copied())
    }

    /// What became of the optional sensor.
    #[must_use]
    pub const fn tracepoint(&self) -> &Tracepoint {
        &self.tracepoint
    }

    /// Waits until the ring may hold reports.
    ///
    /// # Errors
    ///
    /// The I/O driver's.
    pub async fn readable(&mut self) -> io::Result<()> {
        self.wake.readable().await
    }

    /// Takes the records that are in the ring now, oldest first, `limit` at most. How many there
    /// were: not each is an event.
    pub fn take(&mut self, limit: usize, events: &mut Vec<Event>) -> usize {
        let clock = Clock::now();
        let ring = self.wake.ring();
        let mut taken = 0;
        while taken < limit
            && let Some(record) = ring.next()
        {
            events.extend(self.decoder.decode(&record, clock));
            taken += 1;
        }
        if taken > 0 {
            self.wake.found();
        }
        taken
    }

    /// How many reports found the ring full since the last call.
    ///
    /// # Errors
    ///
    /// The kernel's, when the counter cannot be read.
    pub fn newly_lost(&mut self) -> Result<u64, SensorError> {
        self.repeats.newly_lost()
    }

    /// Whether what repeats itself may be counted by the kernel side while the ring is filling.
    /// Until this is called it is not.
    pub fn count_repeats(&mut self, may_count: bool) {
        self.repeats.allow(may_count);
    }

    /// Whether there is something that [`take_repeats`](Self::take_repeats) will give.
    #[must_use]
    pub const fn is_counting(&self) -> bool {
        self.repeats.is_counting()
    }

    /// Adds what was counted before the last call, and how often. At least as long must pass between
    /// two calls as a run of the kernel side can take.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take_repeats(&mut self, events: &mut Vec<(Event, u64)>) -> Result<(), SensorError> {
        let taken = match &self.ebpf {
            Some(_) => self.repeats.take(),
            None => self.repeats.take_all(),
        }?;
        let now = Timestamp::now();
        let taken = taken.iter();
        events.extend(
            taken.filter_map(|(repeat, count)| Some((decode::repeat(repeat, now)?, *count))),
        );
        Ok(())
    }

    /// Cgroups that refusals are about and that are not there: such a refusal applies to nobody.
    #[must_use]
    pub fn missing_cgroups(&self) -> &[String] {
        &self.missing_cgroups
    }

    /// Watches other ports from now on. What is watched before and after is so without a gap.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn watch(
        &mut self,
        watched: impl Iterator<Item = (u16, Transport)>,
    ) -> Result<(), SensorError> {
        if let Some(ebpf) = &mut self.ebpf {
            self.watched = fill(ebpf, &self.watched, watched)?;
        }
        Ok(())
    }

    /// Refuses something else from now on: all at once.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn refuse(&mut self, refusals: &DenyRules) -> Result<(), SensorError> {
        if let Some(ebpf) = &mut self.ebpf {
            self.missing_cgroups = refuse::set(ebpf, refusals)?;
        }
        Ok(())
    }

    /// Why processes are told only by what /proc still shows of them; None where the kernel side
    /// reads what they run.
    #[must_use]
    pub fn exec_info_error(&self) -> Option<&str> {
        self.exec_info_error.as_deref()
    }

    /// Marks a socket from before the kernel side was there: its close and its accepts are then
    /// reported like any other's. `socket` is a descriptor of it. False when it cannot be marked.
    pub fn mark_existing(&mut self, socket: BorrowedFd<'_>, occupant: &ExistingSocket) -> bool {
        self.occupants.mark_existing(socket, occupant)
    }

    /// Detaches the programs; what is in the ring stays readable.
    pub fn disarm(&mut self) {
        self.ebpf = None;
    }
}

/// The programs without which nothing works: all but the tracepoint's.
fn required(ebpf: &mut Ebpf) -> impl Iterator<Item = (&str, &mut Program)> {
    ebpf.programs_mut()
        .filter(|(name, _)| *name != names::TRACEPOINT)
}
