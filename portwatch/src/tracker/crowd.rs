//! Sockets that one program piles up on one port: so many of them are tracked, the others are known
//! by their cookies only. What one user piles up so takes no room from others.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::Arc,
};

use super::{Stage, TrackedSocket};
use crate::{
    model::{PortKey, Printable, SocketKey},
    process::Process,
};

/// Sockets of a crowd that are tracked.
pub(super) const TRACKED: usize = 4096;

/// Sockets that are counted only, of all crowds, 17 bytes each; where there are more, what scans find
/// on their port is left out.
pub(super) const COUNTED: usize = 229_376;

/// Crowds that one look at them reports.
const REPORTED: usize = 8;

/// A program and a port; where a crowd's sockets are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Crowd {
    netns: Option<u64>,
    uid: u32,
    exe: Printable,
    script: Option<Printable>,
    cgroup: Option<Printable>,
    port_key: PortKey,
}

impl Crowd {
    /// None for what belongs to no process.
    fn of(socket: &TrackedSocket) -> Option<Self> {
        let process = socket.process.as_deref()?;
        Some(Self {
            netns: socket.netns,
            uid: process.uid,
            exe: process.exe.as_ref().unwrap_or(&process.comm).clone(),
            script: process.script.clone(),
            cgroup: process.cgroup.clone(),
            port_key: socket.port_key,
        })
    }
}

/// A program whose sockets on a port are not all tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crowded {
    /// How many are counted only.
    pub counted: usize,
    /// The port.
    pub port_key: PortKey,
    /// The executable, or the name of a process without a known one.
    pub exe: Printable,
    /// Real user id.
    pub uid: u32,
}

#[derive(Debug, Default)]
struct Size {
    tracked: usize,
    counted: usize,
    /// What `counted` was when it was reported.
    reported: usize,
}

/// Who has sockets that are counted only.
#[derive(Debug)]
struct Owner {
    crowd: Rc<Crowd>,
    process: Option<Rc<Process>>,
    stage: Stage,
    /// How many of them.
    sockets: usize,
}

/// What distinguishes owners: crowd, pid, start time and stage.
type OwnerKey = (Rc<Crowd>, u32, u64, Stage);

/// The crowds.
pub(super) struct Crowds {
    /// How many sockets may be counted only.
    room: usize,
    sizes: HashMap<Rc<Crowd>, Size>,
    /// The owner of each socket that is counted only, by cookie. Scans have a copy.
    counted: Arc<HashMap<u64, u32>>,
    owners: Vec<Option<Owner>>,
    free: Vec<u32>,
    by_key: HashMap<OwnerKey, u32>,
    /// Cookies that the last scan should have shown and did not.
    absent_once: HashSet<u64>,
    /// Where there are more than are kept.
    overflowing: HashSet<(Option<u64>, PortKey)>,
}

impl Default for Crowds {
    fn default() -> Self {
        Self {
            room: COUNTED,
            sizes: HashMap::new(),
            counted: Arc::default(),
            owners: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            absent_once: HashSet::new(),
            overflowing: HashSet::new(),
        }
    }
}

impl Crowds {
    /// Adds a new socket to its crowd. False if the crowd is so large that it is counted only.
    pub(super) fn admit(&mut self, key: SocketKey, socket: &mut TrackedSocket) -> bool {
        socket.crowd = None;
        let Some(crowd) = Crowd::of(socket) else {
            return true;
        };
        let crowd = match self.sizes.get_key_value(&crowd) {
            Some((crowd, _)) => Rc::clone(crowd),
            None => Rc::new(crowd),
        };
        let size = self.sizes.entry(Rc::clone(&crowd)).or_default();
        if size.tracked >= TRACKED && key.cookie().is_some() {
            socket.crowd = Some(crowd);
            return false;
        }
        size.tracked += 1;
        socket.crowd = Some(crowd);
        true
    }

    /// Notes that a tracked socket is no longer tracked.
    pub(super) fn leave(&mut self, socket: &TrackedSocket) {
        if let Some(crowd) = &socket.crowd {
            self.change(crowd, |size| size.tracked = size.tracked.saturating_sub(1));
        }
    }

    fn change(&mut self, crowd: &Rc<Crowd>, change: impl FnOnce(&mut Size)) {
        if let Some(size) = self.sizes.get_mut(crowd) {
            change(size);
            if size.tracked == 0 && size.counted == 0 {
                self.sizes.remove(crowd);
            }
        }
    }

    /// Counts a socket that is not tracked, or no longer. False if there is no room.
    pub(super) fn count(&mut self, key: SocketKey, socket: &TrackedSocket) -> bool {
        let Some((cookie, crowd)) = key.cookie().zip(socket.crowd.as_ref()) else {
            return false;
        };
        if self.counted.len() >= self.room && !self.counted.contains_key(&cookie) {
            self.overflowing.insert((crowd.netns, crowd.port_key));
            return false;
        }
        self.uncount(cookie);
        let owner = self.owner(crowd, socket);
        Arc::make_mut(&mut self.counted).insert(cookie, owner);
        self.sizes.entry(Rc::clone(crowd)).or_default().counted += 1;
        true
    }

    fn owner(&mut self, crowd: &Rc<Crowd>, socket: &TrackedSocket) -> u32 {
        let process = socket.process.as_ref();
        let (pid, start) = process.map_or((0, 0), |process| (process.pid, process.start_ns));
        let key = (Rc::clone(crowd), pid, start, socket.stage);
        if let Some(index) = self.by_key.get(&key).copied() {
            if let Some(Some(owner)) = self.owners.get_mut(index as usize) {
                owner.sockets += 1;
            }
            return index;
        }
        let owner = Some(Owner {
            crowd: Rc::clone(crowd),
            process: process.map(|process| match process.is_slim {
                true => Rc::clone(process),
                false => Rc::new(process.slim()),
            }),
            stage: socket.stage,
            sockets: 1,
        });
        let index = self.free.pop();
        let index = index.unwrap_or_else(|| {
            self.owners.push(None);
            // At most `COUNTED`.
            (self.owners.len() - 1) as u32
        });
        if let Some(place) = self.owners.get_mut(index as usize) {
            *place = owner;
        }
        self.by_key.insert(key, index);
        index
    }

    /// Forgets a socket that is counted only. Returns whether it was.
    fn uncount(&mut self, cookie: u64) -> bool {
        if !self.counted.contains_key(&cookie) {
            return false;
        }
        let Some(index) = Arc::make_mut(&mut self.counted).remove(&cookie) else {
            return false;
        };
        self.absent_once.remove(&cookie);
        let place = self.owners.get_mut(index as usize);
        if let Some(place) = place
            && let Some(owner) = place
        {
            owner.sockets -= 1;
            let crowd = Rc::clone(&owner.crowd);
            if owner.sockets == 0
                && let Some(owner) = place.take()
            {
                let process = owner.process.as_ref();
                let (pid, start) = process.map_or((0, 0), |one| (one.pid, one.start_ns));
                self.by_key.remove(&(owner.crowd, pid, start, owner.stage));
                self.free.push(index);
            }
            self.change(&crowd, |size| size.counted = size.counted.saturating_sub(1));
        }
        // Half of the room is free again: the next scan finds the others.
        if self.counted.len() < self.room / 2 {
            self.overflowing.clear();
        }
        true
    }

    /// As [`uncount`](Self::uncount), by key.
    pub(super) fn remove(&mut self, key: SocketKey) -> bool {
        key.cookie().is_some_and(|cookie| self.uncount(cookie))
    }

    pub(super) fn has(&self, key: SocketKey) -> bool {
        key.cookie()
            .is_some_and(|cookie| self.counted.contains_key(&cookie))
    }

    /// What is known of a socket that is counted only.
    pub(super) fn get(&self, key: SocketKey) -> Option<TrackedSocket> {
        let index = self.counted.get(&key.cookie()?)?;
        let owner = self.owners.get(*index as usize)?.as_ref()?;
        let mut socket = TrackedSocket::new(owner.crowd.port_key);
        socket.netns = owner.crowd.netns;
        socket.process.clone_from(&owner.process);
        socket.stage = owner.stage;
        socket.crowd = Some(Rc::clone(&owner.crowd));
        socket.is_crowded = true;
        Some(socket)
    }

    /// Whether there are more sockets there than are kept.
    pub(super) fn overflows_at(&self, netns: Option<u64>, port_key: PortKey) -> bool {
        !self.overflowing.is_empty() && self.overflowing.contains(&(netns, port_key))
    }

    /// The cookies that a scan need not show.
    pub(super) fn counted(&self) -> Arc<HashMap<u64, u32>> {
        Arc::clone(&self.counted)
    }

    /// Where a scan need not show what is not known.
    pub(super) fn overflowing(&self) -> &HashSet<(Option<u64>, PortKey)> {
        &self.overflowing
    }

    /// Notes which sockets a scan should have shown and did not; returns those that the one before did
    /// not show, too.
    pub(super) fn absent(&mut self, absent: impl Iterator<Item = u64>) -> Vec<u64> {
        let absent: HashSet<u64> = absent.collect();
        let (gone, once): (Vec<u64>, Vec<u64>) = absent
            .into_iter()
            .partition(|cookie| self.absent_once.contains(cookie));
        self.absent_once = once.into_iter().collect();
        gone
    }

    /// Whether a scan left out one that the next has to confirm.
    pub(super) fn has_absent(&self) -> bool {
        !self.absent_once.is_empty()
    }

    /// Forgets the sockets on such ports.
    pub(super) fn forget(&mut self, is_forgotten: impl Fn(PortKey) -> bool) {
        let is_of = |index: &u32| {
            let owner = self.owners.get(*index as usize).and_then(Option::as_ref);
            owner.is_some_and(|owner| is_forgotten(owner.crowd.port_key))
        };
        let gone = self.counted.iter().filter(|(_, index)| is_of(index));
        let gone: Vec<u64> = gone.map(|(cookie, _)| *cookie).collect();
        for cookie in gone {
            self.uncount(cookie);
        }
        self.overflowing
            .retain(|(_, port_key)| !is_forgotten(*port_key));
    }

    /// The largest crowds with sockets that are counted only, each once until it has doubled.
    pub(super) fn take_crowded(&mut self) -> Vec<Crowded> {
        let news = self.sizes.iter_mut();
        let mut news: Vec<_> = news
            .filter(|(_, size)| size.counted > 0 && size.counted >= 2 * size.reported)
            .collect();
        news.sort_by_key(|(_, size)| std::cmp::Reverse(size.counted));
        let news = news.into_iter().take(REPORTED);
        news.map(|(crowd, size)| {
            size.reported = size.counted;
            Crowded {
                counted: size.counted,
                port_key: crowd.port_key,
                exe: crowd.exe.clone(),
                uid: crowd.uid,
            }
        })
        .collect()
    }

    #[cfg(test)]
    pub(super) const fn set_room(&mut self, room: usize) {
        self.room = room;
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.counted.len()
    }
}
