//! The program that sees datagrams: attached only while a socket is on a watched port, to that socket's
//! own cgroup, so that sockets in other cgroups pay nothing.
#![forbid(unsafe_code)]

mod budget;
mod peers;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{Program, links::FdLink},
};
use portwatch_common::{MAX_RECEIVERS, names};

use self::{budget::Budget, peers::Peers};
use super::{
    Health, Sensor, SensorError,
    attach::{attached, link},
    object::load_program,
};
use crate::linux::cgroup::open_by_id;

/// Whether and how datagrams are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveSettings {
    /// Whether they are.
    pub enabled: bool,
    /// Packets to other sockets of these cgroups, a second, that the program may look at.
    pub max_rate: u64,
}

impl Default for ReceiveSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            max_rate: 200_000,
        }
    }
}

/// Cgroups that the program is attached to at once.
const MAX_CGROUPS: usize = 64;

/// How long it stays attached after the last socket has closed: attaching takes longer than a short
/// life.
const LINGER: Duration = Duration::from_secs(1);

/// `BPF_CGROUP_INET_INGRESS` of `enum bpf_attach_type` (include/uapi/linux/bpf.h).
const INGRESS: u32 = 0;

/// The sockets whose datagrams are looked at, and the cgroups that they are in.
pub(super) struct Receive {
    /// A directory of the cgroup hierarchy, by which others are found; None without a descriptor.
    root: Option<File>,
    /// Why the kernel rejected the program.
    rejected: Option<String>,
    settings: ReceiveSettings,
    peers: Peers,
    budget: Budget,
    cgroups: BTreeMap<u64, Cgroup>,
    /// The cgroup of each, by cookie.
    sockets: HashMap<u64, u64>,
    /// Why datagrams of some sockets are not seen; the last reason that was not reported yet.
    problem: Option<String>,
    /// The one that was reported last.
    reported: Option<String>,
}

/// A cgroup with sockets on watched ports.
struct Cgroup {
    directory: OwnedFd,
    /// Where it is.
    path: PathBuf,
    sockets: usize,
    /// Whether the program is to be attached here: it runs for the sockets of all cgroups below, once for
    /// each place that it is attached to.
    is_wanted: bool,
    link: Option<FdLink>,
    idle_since: Option<Instant>,
    /// When to put it back, where it was taken off.
    off_until: Option<Instant>,
    /// Whether it was reported as taken off, and not as put back.
    is_off_reported: bool,
}

impl Receive {
    /// To be called once all programs are loaded.
    pub(super) fn new(ebpf: &mut Ebpf, root: BorrowedFd<'_>) -> Result<Self, SensorError> {
        Ok(Self {
            root: root.try_clone_to_owned().ok().map(File::from),
            rejected: load(ebpf).err().map(|error| error.to_string()),
            settings: ReceiveSettings::default(),
            peers: Peers::new(ebpf)?,
            budget: Budget::new(ebpf)?,
            cgroups: BTreeMap::new(),
            sockets: HashMap::new(),
            problem: None,
            reported: None,
        })
    }

    fn start(&mut self, ebpf: &mut Ebpf, cookie: u64, id: u64) {
        if !self.settings.enabled
            || self.rejected.is_some()
            || self.sockets.get(&cookie) == Some(&id)
        {
            return;
        }
        if self.sockets.len() >= MAX_RECEIVERS as usize {
            self.problem = Some(format!("more than {MAX_RECEIVERS} sockets"));
            return;
        }
        if let Err(problem) = self.join(ebpf, id) {
            self.problem = Some(problem);
            return;
        }
        if let Some(before) = self.sockets.insert(cookie, id) {
            self.leave(before);
        }
    }

    /// Counts one more socket in a cgroup, and attaches the program there.
    fn join(&mut self, ebpf: &mut Ebpf, id: u64) -> Result<(), String> {
        if let Some(cgroup) = self.cgroups.get_mut(&id) {
            cgroup.sockets += 1;
            cgroup.idle_since = None;
            return Ok(());
        }
        if self.cgroups.len() >= MAX_CGROUPS {
            // Room for one that is in use.
            self.detach(|cgroup| cgroup.idle_since.is_some());
        }
        if self.cgroups.len() >= MAX_CGROUPS {
            return Err(format!("sockets are in more than {MAX_CGROUPS} cgroups"));
        }
        let root = self.root.as_ref();
        let opened = root
            .and_then(|root| open_by_id(root, id))
            .and_then(|directory| Some((path(&directory)?, directory)));
        let (path, directory) = opened.ok_or_else(|| {
            format!("the cgroup with id {id} has been removed, or cannot be opened")
        })?;
        let cgroup = Cgroup {
            directory,
            path,
            sockets: 1,
            is_wanted: false,
            link: None,
            idle_since: None,
            off_until: None,
            is_off_reported: false,
        };
        self.cgroups.insert(id, cgroup);
        self.align(ebpf).inspect_err(|_| {
            self.cgroups.remove(&id);
        })
    }

    /// Attaches the program to each of the cgroups, but for those within another, and for those that it is
    /// taken off. Detaches it from these first, so that no datagram is counted twice.
    fn align(&mut self, ebpf: &mut Ebpf) -> Result<(), String> {
        let is_on = |cgroup: &&Cgroup| cgroup.off_until.is_none();
        let outer = self.cgroups.values().filter(is_on);
        let outer: Vec<PathBuf> = outer.map(|cgroup| cgroup.path.clone()).collect();
        for cgroup in self.cgroups.values_mut() {
            let path = &cgroup.path;
            let is_within = outer
                .iter()
                .any(|outer| outer != path && path.starts_with(outer));
            cgroup.is_wanted = cgroup.off_until.is_none() && !is_within;
            if !cgroup.is_wanted {
                cgroup.link = None;
            }
        }
        let mut result = Ok(());
        for cgroup in self.cgroups.values_mut() {
            if cgroup.is_wanted && cgroup.link.is_none() {
                match attach(ebpf, cgroup.directory.as_fd()) {
                    Ok(link) => cgroup.link = Some(link),
                    Err(error) => result = Err(error.to_string()),
                }
            }
        }
        result
    }

    fn leave(&mut self, id: u64) {
        if let Some(cgroup) = self.cgroups.get_mut(&id) {
            cgroup.sockets = cgroup.sockets.saturating_sub(1);
            if cgroup.sockets == 0 {
                cgroup.idle_since = Some(Instant::now());
            }
        }
    }

    fn stop(&mut self, cookie: u64) {
        if let Some(id) = self.sockets.remove(&cookie) {
            self.leave(id);
        }
        self.peers.forget(cookie);
    }

    /// Detaches the program everywhere.
    pub(super) fn disarm(&mut self) {
        self.cgroups.clear();
    }

    /// Detaches the program from such cgroups.
    fn detach(&mut self, is_over: impl Fn(&Cgroup) -> bool) {
        self.cgroups.retain(|_, cgroup| !is_over(cgroup));
    }

    /// Attaches it again where somebody has detached it.
    fn repair(&mut self, ebpf: &mut Ebpf) -> Vec<Health> {
        let mut changes = Vec::new();
        let Some(program) = program(ebpf).ok().and_then(|program| program.info().ok()) else {
            return changes;
        };
        let program = program.id();
        for (id, cgroup) in &mut self.cgroups {
            let is_there = attached(cgroup.directory.as_fd(), INGRESS)
                .is_ok_and(|programs| programs.contains(&program));
            // One without sockets can be gone, as of a service that has ended.
            if is_there || !cgroup.is_wanted || cgroup.sockets == 0 {
                continue;
            }
            let was_there = cgroup.link.is_some();
            cgroup.link = None;
            let result = attach(ebpf, cgroup.directory.as_fd());
            let detail = match &result {
                Ok(_) => format!(
                    "the program {NAME} was detached from the cgroup with id {id}, and is attached \
                     again"
                ),
                Err(error) => {
                    format!("the program {NAME} was detached from the cgroup with id {id}: {error}")
                }
            };
            cgroup.link = result.ok();
            if was_there || cgroup.link.is_some() {
                changes.push(Health {
                    regained: cgroup.link.is_some(),
                    detail,
                });
            }
        }
        changes
    }
}

impl Sensor {
    /// Looks at the datagrams that a socket gets. `cgroup`: the id of its own cgroup, or of the one
    /// that is probably its own; to be called again with the right one.
    pub fn start_receiving(&mut self, cookie: u64, cgroup: u64) {
        if let Some(ebpf) = &mut self.ebpf {
            self.receive.start(ebpf, cookie, cgroup);
        }
    }

    /// Forgets a socket that has closed.
    pub fn stop_receiving(&mut self, cookie: u64) {
        self.receive.stop(cookie);
    }

    /// The sockets whose datagrams are looked at, by cookie.
    pub fn receiving(&self) -> impl Iterator<Item = u64> {
        self.receive.sockets.keys().copied()
    }

    /// Whether the program is attached anywhere, or a problem is to be reported.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        !self.receive.cgroups.is_empty() || self.receive.problem.is_some()
    }

    /// Other settings from now on. Without it, what was counted is lost from the alerts to come.
    pub fn set_receive(&mut self, settings: ReceiveSettings) {
        self.receive.settings = settings;
        if !settings.enabled {
            for cookie in self.receiving().collect::<Vec<_>>() {
                self.stop_receiving(cookie);
            }
            self.receive.disarm();
        }
    }

    /// Why the kernel rejected the program, so that no datagram is seen.
    #[must_use]
    pub fn receive_error(&self) -> Option<&str> {
        let error = self.receive.rejected.as_deref();
        error.filter(|_| self.receive.settings.enabled)
    }

    /// Detaches the program where it has no socket any more, and takes it off for a time where it costs
    /// too much; forgets sockets that neither this nor the caller knows. To be called about once a second,
    /// while [`is_receiving`](Self::is_receiving). What to report.
    pub fn tend_receive(&mut self, is_open: impl Fn(u64) -> bool) -> Vec<Health> {
        let Some(ebpf) = &mut self.ebpf else {
            return Vec::new();
        };
        let now = Instant::now();
        let sockets = &self.receive.sockets;
        let is_known = |cookie| sockets.contains_key(&cookie) || is_open(cookie);
        self.receive.peers.sweep(is_known);
        self.receive
            .detach(|cgroup| cgroup.idle_since.is_some_and(|since| now - since >= LINGER));
        let mut changes = self.receive.keep_to_budget(ebpf, now);
        let problem = self.receive.problem.take();
        if problem.is_some() && problem != self.receive.reported {
            changes.extend(problem.as_ref().map(|problem| Health {
                regained: false,
                detail: format!("the datagrams of some sockets are not seen: {problem}"),
            }));
            self.receive.reported = problem;
        }
        changes
    }

    /// Attaches the program again where it is no longer attached.
    pub(super) fn check_receive(&mut self) -> Vec<Health> {
        match &mut self.ebpf {
            Some(ebpf) => self.receive.repair(ebpf),
            None => Vec::new(),
        }
    }
}

const NAME: &str = names::RECEIVE;

fn program(ebpf: &mut Ebpf) -> Result<&mut Program, SensorError> {
    ebpf.program_mut(NAME).ok_or_else(|| {
        let missing = io::Error::other(format!("has no program {NAME}"));
        SensorError::kernel("the eBPF object", &missing)
    })
}

/// Loads the program, unless it is loaded.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), SensorError> {
    let program = program(ebpf)?;
    if program.fd().is_ok() {
        return Ok(());
    }
    load_program(program).map_err(|error| SensorError::program(NAME, error))
}

/// Where an open directory is.
fn path(directory: &OwnedFd) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()
}

/// Attaches the program for as long as the link lives.
fn attach(ebpf: &mut Ebpf, cgroup: BorrowedFd<'_>) -> Result<FdLink, SensorError> {
    link(NAME, program(ebpf)?, cgroup)
}
