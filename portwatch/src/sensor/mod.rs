//! Loads and attaches the BPF programs and reads their ring buffer. Nothing else knows aya.

mod attach;
mod error;
mod integrity;
mod maps;
mod object;
mod receive;
mod ring;
#[cfg(feature = "testing")]
mod testing;

use std::{
    collections::{BTreeSet, HashSet},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
};

use aya::{
    Ebpf,
    maps::{Map, RingBuf},
    programs::Program,
};
use jiff::Timestamp;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
pub use portwatch_common::MAX_COUNTED_SOCKETS;
use portwatch_common::{Report, SessionEnd, names};

#[cfg(feature = "testing")]
pub use self::testing::Records;
use self::{
    attach::{BeforeBind, Cgroup, Links, Pins, attach_program},
    integrity::Integrity,
    maps::{
        counted::CountedSockets,
        map,
        marks::SocketMarks,
        repeats::Repeats,
        watched::{Watched, fill},
    },
    object::{HostFeatures, OBJECT, check_privileges, check_ring_size, load, load_programs},
    ring::{Clock, Decoder, Shared, Wake, decode},
};
pub use self::{
    attach::{Health, Tracepoint, is_pinned, unpin},
    error::SensorError,
    maps::{counted::Pass, deny::Deny, marks::ExistingSocket, repeats::News},
    object::{Check, PRIVILEGES, probe},
    receive::ReceiveSettings,
};
use crate::model::{DenyRules, Event, Transport};

/// How to arm.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the ring buffer in bytes: a power of two, at least a page.
    pub ring_size: u32,
    /// The cgroup to watch; None for all of the host.
    pub cgroup: Option<PathBuf>,
    /// Whether the programs that deny stay attached when the agent ends.
    pub fail_closed: bool,
}

/// The transports that the cgroup hooks see.
const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpLite];

/// The BPF programs, armed; dropping it detaches them.
pub struct Sensor {
    /// Holds the programs and their links; None once disarmed.
    ebpf: Option<Ebpf>,
    wake: Wake,
    repeats: Repeats,
    counted: CountedSockets,
    decoder: Decoder,
    deny: Deny,
    before_bind: BeforeBind,
    marks: SocketMarks,
    /// Why the BPF programs read no exec info; None where they do.
    exec_info_error: Option<String>,
    cgroup: String,
    programs: usize,
    tracepoint: Tracepoint,
    /// Where the programs are attached.
    cgroup_fd: OwnedFd,
    /// By which path, where the caller named one.
    cgroup_path: Option<PathBuf>,
    /// The programs that could not be attached again.
    missing: BTreeSet<&'static str>,
    watched: Watched,
    receive: receive::Receive,
    /// Reports that were taken from the ring.
    taken: u64,
    integrity: Integrity,
    links: Links,
    /// Links that stay when this goes.
    pins: Option<Pins>,
}

impl Sensor {
    /// Loads and attaches the BPF programs, to report what happens on the `watched` ports. Events
    /// are collected from the moment this returns. To be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`SensorError`], which says what the kernel or the caller must change.
    pub fn arm(
        options: &Options,
        watched: impl Iterator<Item = (u16, Transport)>,
        deny: &DenyRules,
    ) -> Result<Self, SensorError> {
        Self::arm_object(OBJECT, options, watched, deny)
    }

    /// As [`arm`](Self::arm), with any object.
    fn arm_object(
        object: &[u8],
        options: &Options,
        watched: impl Iterator<Item = (u16, Transport)>,
        deny: &DenyRules,
    ) -> Result<Self, SensorError> {
        check_ring_size(options.ring_size)?;
        check_privileges()?;
        let Cgroup { fd: cgroup, label } = Cgroup::open(options.cgroup.as_deref())?;
        let mut pins = options.fail_closed.then(Pins::open).transpose()?;
        // Before Linux 5.11 maps count as locked memory. Where this is rejected it is not needed.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);

        let (features, loader) = HostFeatures::read();
        let mut ebpf = load(loader, object, options.ring_size, &features)?;
        let watched = fill(&mut ebpf, &Watched::default(), watched)?;
        let in_force = Deny::new(&mut ebpf)?;
        in_force.set(deny)?;
        let ring = map(ebpf.take_map(names::RING), names::RING, RingBuf::try_from)?;
        let control = map(ebpf.map(names::CONTROL), names::CONTROL, |map| match map {
            Map::Array(data) => Ok(data),
            _ => Err(io::Error::other("is no array")),
        })?;
        let control = Shared::map(control)
            .map(Rc::new)
            .map_err(|error| SensorError::kernel("mapping the control page", &error))?;
        let wake = Wake::new(ring, Rc::clone(&control))
            .map_err(|error| SensorError::kernel("waiting for the ring buffer", &error))?;
        let repeats = Repeats::new(&mut ebpf, Rc::clone(&control), options.ring_size)?;
        let marks = SocketMarks::new(&mut ebpf, control)?;
        let counted = CountedSockets::new(&mut ebpf)?;

        // All are loaded before any is attached, so that one that is rejected leaves nothing behind.
        // The tracepoint too, since an armed monitor gives up loading programs.
        let programs = ebpf.programs_mut();
        load_programs(programs.filter(|(name, _)| !names::BEFORE_BIND.contains(name)))?;
        let mut before_bind = BeforeBind::load(&mut ebpf);
        let receive = receive::Receive::new(&mut ebpf, cgroup.as_fd())?;
        let mut programs = 0;
        let mut links = Links::default();
        for (name, program) in required(&mut ebpf) {
            attach_program(name, program, &cgroup, pins.as_mut(), &mut links)?;
            programs += 1;
        }
        before_bind.set(
            in_force.is_in_force(),
            &mut ebpf,
            &cgroup,
            pins.as_mut(),
            &mut links,
        )?;
        programs += before_bind.attached();
        let tracepoint = Tracepoint::attach(&mut ebpf, features.tracepoint_transports.clone());
        #[cfg(feature = "debug")]
        object::debug::forward_log(&mut ebpf);
        Ok(Self {
            ebpf: Some(ebpf),
            wake,
            repeats,
            counted,
            decoder: Decoder::new(),
            deny: in_force,
            before_bind,
            marks,
            exec_info_error: features.exec_info_error(),
            cgroup: label,
            programs,
            tracepoint,
            cgroup_fd: cgroup,
            cgroup_path: options.cgroup.clone(),
            missing: BTreeSet::new(),
            watched,
            receive,
            taken: 0,
            integrity: Integrity::default(),
            links,
            pins,
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

    /// Whether every program was attached at the last [`check`](Self::check).
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
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
        self.integrity.is_ring_changed |= self.wake.positions().restore();
        let ring = self.wake.ring();
        let mut taken = 0;
        while taken < limit
            && let Some(record) = ring.next()
        {
            if [size_of::<Report>(), size_of::<SessionEnd>()].contains(&record.len()) {
                self.taken += 1;
            }
            events.extend(self.decoder.decode(&record, clock));
            taken += 1;
        }
        self.wake.positions().note();
        if taken > 0 {
            self.wake.found();
        }
        taken
    }

    /// What the BPF programs did since the last call.
    ///
    /// # Errors
    ///
    /// The kernel's, when the counters cannot be read.
    pub fn news(&mut self) -> Result<News, SensorError> {
        let produced = self.wake.positions().produced();
        let mut news = self.repeats.news()?;
        news.lost += self.missing_reports(produced, self.repeats.submitted())?;
        Ok(news)
    }

    /// Whether the BPF programs may count repeated events while the ring is filling. Until this is
    /// called they may not.
    pub fn count_repeats(&mut self, may_count: bool) {
        self.repeats.allow(may_count);
    }

    /// Whether the end of each connection is to be read at once. Until this is called it is read with the
    /// next event.
    pub fn wake_for_sessions(&mut self, wake: bool) {
        self.repeats.wake_for_sessions(wake);
    }

    /// Whether there is something that [`take_repeats`](Self::take_repeats) will give.
    #[must_use]
    pub const fn is_counting(&self) -> bool {
        self.repeats.is_counting()
    }

    /// Adds what was counted before the last call, and how often. At least as long must pass between
    /// two calls as a run of a BPF program can take.
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
        events.extend(taken.filter_map(|(key, count)| decode::repeat(key, *count, now)));
        Ok(())
    }

    /// Goes on with a pass through the table of counted sockets: adds the events of sockets that last,
    /// in their order; once disarmed, of all that are open. They are to be pushed before the ring is
    /// read again. Bounded work: see [`Pass`].
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take_counted_sockets(&mut self, events: &mut Vec<Event>) -> Result<Pass, SensorError> {
        let mut taken = Vec::new();
        let pass = self.counted.take(self.ebpf.is_none(), &mut taken)?;
        let clock = Clock::now();
        for report in &taken {
            events.extend(self.decoder.decode(bytemuck::bytes_of(report), clock));
        }
        Ok(pass)
    }

    /// The sockets in the table of counted sockets, by cookie.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn counted_sockets(&self) -> Result<HashSet<u64>, SensorError> {
        let mut cookies = HashSet::new();
        self.counted
            .for_each(|key, _| {
                cookies.insert(key.cookie);
            })
            .map_err(|error| SensorError::kernel("reading the table of counted sockets", &error))?;
        Ok(cookies)
    }

    /// The deny rules in force, to follow their cgroups.
    #[must_use]
    pub const fn deny_rules(&self) -> &Deny {
        &self.deny
    }

    /// Why binds are denied only after the kernel has accepted them; None where that happens before, or
    /// no rule denies.
    #[must_use]
    pub fn late_deny(&self) -> Option<&str> {
        self.before_bind
            .rejected()
            .filter(|_| self.deny.is_in_force())
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

    /// Replaces the deny rules, all at once.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn deny(&mut self, deny: &DenyRules) -> Result<(), SensorError> {
        let Some(ebpf) = &mut self.ebpf else {
            return Ok(());
        };
        let (cgroup, mut pins, links) = (&self.cgroup_fd, self.pins.as_mut(), &mut self.links);
        // There is no moment in which a bind meets no program that denies.
        if !deny.rules.is_empty() {
            self.before_bind
                .set(true, ebpf, cgroup, pins.as_deref_mut(), links)?;
        }
        self.deny.set(deny)?;
        self.before_bind
            .set(self.deny.is_in_force(), ebpf, cgroup, pins, links)
    }

    /// Why the BPF programs read no exec info, so that processes are identified only by what /proc
    /// still shows; None where they do.
    #[must_use]
    pub fn exec_info_error(&self) -> Option<&str> {
        self.exec_info_error.as_deref()
    }

    /// Marks a socket from before the BPF programs were attached: its close and its accepts are then
    /// reported like any other's. `socket` is a descriptor of it. False when it cannot be marked.
    pub fn mark_existing(&mut self, socket: BorrowedFd<'_>, existing: &ExistingSocket) -> bool {
        self.marks.mark_existing(socket, existing)
    }

    /// Detaches the programs; what is in the ring stays readable.
    pub fn disarm(&mut self) {
        self.links = Links::default();
        self.receive.disarm();
        self.ebpf = None;
    }
}

/// Programs without which the others work.
const OPTIONAL: [&str; 2] = [names::TRACEPOINT, names::RECEIVE];

/// The programs without which nothing works.
fn required(ebpf: &mut Ebpf) -> impl Iterator<Item = (&str, &mut Program)> {
    ebpf.programs_mut()
        .filter(|(name, _)| !OPTIONAL.contains(name) && !names::BEFORE_BIND.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_the_kernel_rejects_is_quoted() {
        // Where the object calls bpf_get_socket_cookie, this one calls a helper that no kernel has.
        let mut object = OBJECT.to_vec();
        let call = |helper: u32| [&[0x85, 0, 0, 0][..], &helper.to_le_bytes()].concat();
        let (from, to) = (call(46), call(9999));
        let calls: Vec<usize> = (0..object.len() - from.len())
            .step_by(8)
            .filter(|at| object[*at..].starts_with(&from))
            .collect();
        assert!(!calls.is_empty());
        for at in calls {
            object[at..at + to.len()].copy_from_slice(&to);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        let options = Options {
            ring_size: 1 << 16,
            cgroup: None,
            fail_closed: false,
        };
        let armed =
            Sensor::arm_object(&object, &options, std::iter::empty(), &DenyRules::default());
        let error = armed.err().unwrap();
        assert!(matches!(error, SensorError::Rejected { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("rejected the program "), "{text}");
        assert!(
            text.ends_with("verifier log ends: invalid func unknown#9999"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }
}
