//! The tracker that are kept, and for how long.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    rc::Rc,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    alert::{Holder, Origin},
    model::{Event, EventKind, SocketKey, Transport},
    process::Process,
};

/// Where a socket sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) transport: Transport,
    pub(super) port: u16,
}

impl Place {
    pub(super) const fn of(event: &Event) -> Self {
        Self {
            transport: event.transport,
            port: event.port,
        }
    }
}

/// How far a stay has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Bound,
    Listening,
    Connected,
}

impl Stage {
    /// How far an event of that kind has it come; None for one that does not change that.
    pub(super) const fn after(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::Bind => Some(Self::Bound),
            EventKind::Listen => Some(Self::Listening),
            EventKind::Connect => Some(Self::Connected),
            _ => None,
        }
    }
}

/// One socket's stay on a watched port.
#[derive(Clone, Debug)]
pub(super) struct TrackedSocket {
    pub(super) place: Place,
    pub(super) address: Option<IpAddr>,
    pub(super) stage: Stage,
    /// How it was first told.
    pub(super) origin: Origin,
    pub(super) since: Option<Timestamp>,
    pub(super) process: Option<Rc<Process>>,
    pub(super) holders: Rc<[Holder]>,
    pub(super) netns: Option<u64>,
    pub(super) is_kernel_socket: Option<bool>,
    /// Whether the kernel side reports its close.
    pub(super) marked: bool,
    /// Whether it was tried to make it so.
    pub(super) tried: bool,
    /// Whether somebody from elsewhere has connected.
    pub(super) reached: bool,
    /// Whether the last snapshot should have shown it and did not.
    pub(super) missed: bool,
    /// The snapshot that was last begun when something was last told of it.
    pub(super) round: u64,
    /// When its holders were last looked for.
    looked_at: Option<Timestamp>,
}

impl TrackedSocket {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            address: None,
            stage: Stage::Bound,
            origin: Origin::Live,
            since: None,
            process: None,
            holders: Rc::default(),
            netns: None,
            is_kernel_socket: None,
            marked: true,
            tried: false,
            reached: false,
            missed: false,
            round: 0,
            looked_at: None,
        }
    }

    /// Whether it sits there.
    fn is_at(&self, place: Place, address: Option<IpAddr>, netns: Option<u64>) -> bool {
        self.place == place
            && (self.netns == netns || netns.is_none() || self.netns.is_none())
            && (self.address == address
                || address.is_none()
                || self.address.is_none_or(|own| own.is_unspecified()))
    }
}

/// A listener that nothing but its accepts is known of, by its network namespace.
pub(super) type Stranger = (Option<u64>, Place);

/// Strangers that are remembered; past that, all are forgotten.
const STRANGERS: usize = 4096;

/// Open tracker that are kept. Past that the oldest is forgotten: its later alerts name no
/// process.
pub(super) const OPEN: usize = 65_536;

/// Closed tracker that are kept.
pub(super) const CLOSED: usize = 256;

/// How long the holders of a listener that is connected to are taken for unchanged.
const HOLDERS_ARE_GOOD_FOR: SignedDuration = SignedDuration::from_secs(5);

#[derive(Default)]
pub(super) struct Table {
    /// By the events' key, a cookie mostly; cookies grow, so the first is about the oldest.
    open: BTreeMap<SocketKey, TrackedSocket>,
    /// The newest that closed: an accept on another CPU can be reported after the close.
    closed: HashMap<SocketKey, TrackedSocket>,
    /// Their keys, the oldest first.
    closed_keys: VecDeque<SocketKey>,
    /// Open ones whose holders are to be looked for.
    unlooked: HashSet<SocketKey>,
    /// Open ones whose close nobody reports.
    unmarked: HashSet<SocketKey>,
    /// Listeners that no occupancy stands for and that somebody from elsewhere has reached.
    reached: HashSet<Stranger>,
    /// Where a listener has been: connections from and to there can outlive it.
    listened: HashSet<Place>,
    forgotten: u64,
    /// Snapshots that were begun.
    pub(super) round: u64,
}

impl Table {
    pub(super) fn known(&self, key: SocketKey) -> Option<&TrackedSocket> {
        self.open.get(&key).or_else(|| self.closed.get(&key))
    }

    /// Whether its end was told.
    pub(super) fn has_closed(&self, key: SocketKey) -> bool {
        !self.open.contains_key(&key) && self.closed.contains_key(&key)
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (SocketKey, &TrackedSocket)> {
        self.open.iter().map(|(key, occupancy)| (*key, occupancy))
    }

    pub(super) fn get_mut(&mut self, key: SocketKey) -> Option<&mut TrackedSocket> {
        self.open.get_mut(&key)
    }

    /// The key of the open occupancy at that place; a listener before others.
    pub(super) fn at(
        &self,
        place: Place,
        address: Option<IpAddr>,
        netns: Option<u64>,
    ) -> Option<SocketKey> {
        self.open
            .iter()
            .filter(|(_, occupancy)| occupancy.is_at(place, address, netns))
            .max_by_key(|(_, occupancy)| occupancy.stage == Stage::Listening)
            .map(|(key, _)| *key)
    }

    pub(super) fn accepted(&mut self, key: SocketKey, reached: bool, time: Timestamp) {
        let Some(occupancy) = self.open.get_mut(&key) else {
            return;
        };
        occupancy.reached |= reached;
        let is_old = |at: Timestamp| time.duration_since(at) > HOLDERS_ARE_GOOD_FOR;
        if occupancy.looked_at.is_some_and(is_old) {
            self.unlooked.insert(key);
        }
    }

    pub(super) fn was_listened_on(&self, place: Place) -> bool {
        self.listened.contains(&place)
    }

    pub(super) fn is_reached(&self, stranger: Stranger) -> bool {
        self.reached.contains(&stranger)
    }

    pub(super) fn reach(&mut self, stranger: Stranger) {
        if self.reached.len() >= STRANGERS {
            self.reached.clear();
        }
        self.reached.insert(stranger);
    }

    pub(super) fn store(&mut self, key: SocketKey, occupancy: &TrackedSocket, kind: EventKind) {
        match kind {
            EventKind::Bind | EventKind::Listen | EventKind::Connect => {
                let mut occupancy = occupancy.clone();
                occupancy.round = self.round;
                let kernels = occupancy.is_kernel_socket == Some(true);
                if !kernels {
                    self.unlooked.insert(key);
                }
                // Nothing reports the release of a socket of the kernel's own.
                occupancy.marked &= !kernels;
                self.put(key, occupancy);
            }
            EventKind::Close => {
                self.take(key);
                if self.closed.insert(key, occupancy.clone()).is_none() {
                    self.closed_keys.push_back(key);
                }
                if self.closed.len() > CLOSED
                    && let Some(oldest) = self.closed_keys.pop_front()
                {
                    self.closed.remove(&oldest);
                }
            }
            // Neither begins nor ends a stay: after a close it must not bring one back.
            _ => {}
        }
    }

    pub(super) fn put(&mut self, key: SocketKey, occupancy: TrackedSocket) {
        if occupancy.stage == Stage::Listening {
            self.listened.insert(occupancy.place);
        }
        if occupancy.marked {
            self.unmarked.remove(&key);
        } else {
            self.unmarked.insert(key);
        }
        self.open.insert(key, occupancy);
        if self.open.len() > OPEN
            && let Some((oldest, _)) = self.open.pop_first()
        {
            self.unlooked.remove(&oldest);
            self.unmarked.remove(&oldest);
            self.forgotten += 1;
        }
    }

    fn take(&mut self, key: SocketKey) {
        self.open.remove(&key);
        self.unlooked.remove(&key);
        self.unmarked.remove(&key);
    }

    /// Notes who has the socket open.
    pub(super) fn looked(&mut self, key: SocketKey, holders: Rc<[Holder]>, time: Timestamp) {
        if let Some(occupancy) = self.open.get_mut(&key) {
            occupancy.looked_at = Some(time);
            if !holders.is_empty() {
                occupancy.holders = holders;
            }
        }
        self.unlooked.remove(&key);
    }

    /// Holders are looked for anew only of what is told from here on.
    pub(super) fn all_looked(&mut self, before: u64) {
        let open = &self.open;
        self.unlooked.retain(|key| {
            open.get(key)
                .is_some_and(|occupancy| occupancy.round >= before)
        });
    }

    /// Whether it is open, unmarked, and nobody has tried yet; now somebody does.
    pub(super) fn try_to_mark(&mut self, key: SocketKey) -> bool {
        let Some(occupancy) = self.open.get_mut(&key) else {
            return false;
        };
        let is_new = !occupancy.marked && !occupancy.tried && !occupancy.holders.is_empty();
        occupancy.tried |= is_new;
        is_new
    }

    /// Notes that the kernel side reports its close.
    pub(super) fn mark(&mut self, key: SocketKey) {
        if let Some(occupancy) = self.open.get_mut(&key) {
            occupancy.marked = true;
        }
        self.unmarked.remove(&key);
    }

    pub(super) const fn take_forgotten(&mut self) -> u64 {
        std::mem::replace(&mut self.forgotten, 0)
    }

    pub(super) fn wants_snapshot(&self) -> bool {
        !self.unlooked.is_empty()
    }

    pub(super) fn has_unmarked(&self) -> bool {
        !self.unmarked.is_empty()
    }

    /// How many are open, and how many of those that closed are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.open.len(), self.closed.len())
    }
}
