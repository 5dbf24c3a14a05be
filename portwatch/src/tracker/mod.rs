//! The state machine: events and snapshots in, alerts out. An occupancy is one socket's stay on a
//! watched port, from bind to close; it gives the events that carry no process theirs.

mod host;
mod reconcile;
mod table;

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

pub use self::host::{Host, ThisHost};
use self::table::{Place, Stage, Table, TrackedSocket};
use crate::{
    alert::{Alert, Family, Holder, Origin, Peer, RegistryEntry, RuleInfo, SCHEMA, Socket},
    model::{Event, EventKind, Printable, Severity, SocketKey, Transport},
    policy::{Decision, Policy, default_severity},
    process::Process,
    registry::Registry,
};

/// The tracker of this host.
pub struct Tracker<H> {
    host: H,
    registry: Registry,
    /// What alerts quote of it, of the ports that had any.
    words: HashMap<(u16, Transport), Rc<RegistryEntry>>,
    name: Printable,
    policy: Rc<Policy>,
    /// Whether `deny` is only reported.
    dry_run: bool,
    table: Table,
    /// What waits for a snapshot that is being taken, None when none is.
    waiting: Option<reconcile::Waiting>,
    /// Keys of sockets that the last snapshot showed, without a holder, and that are not told yet.
    nobodys: HashSet<SocketKey>,
}

impl<H: Host> Tracker<H> {
    /// No tracker yet, on the host called `name`.
    pub fn new(host: H, registry: Registry, name: Printable, policy: Rc<Policy>) -> Self {
        Self {
            host,
            registry,
            words: HashMap::new(),
            name,
            policy,
            dry_run: false,
            table: Table::default(),
            waiting: None,
            nobodys: HashSet::new(),
        }
    }

    /// Other rules from now on.
    pub fn set_policy(&mut self, policy: Rc<Policy>, dry_run: bool) {
        self.policy = policy;
        self.dry_run = dry_run;
    }

    /// The registry that is quoted.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The machine that is asked.
    pub const fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// Adds what the operator should read of `event`; nothing yet for one that a snapshot which is
    /// being taken will explain.
    pub fn observe(&mut self, event: Event, alerts: &mut Vec<Alert>) {
        if let Some(event) = self.wait(event) {
            self.settle(&event, alerts);
        }
    }

    /// Adds what the operator should read of `event`.
    fn settle(&mut self, event: &Event, alerts: &mut Vec<Alert>) {
        let key = event.key.or_else(|| self.stranger(event));
        // A snapshot that did not show it any more has told so.
        if event.kind == EventKind::Close && key.is_some_and(|key| self.table.has_closed(key)) {
            return;
        }
        let known = key.and_then(|key| self.table.known(key)).cloned();
        // The snapshot saw it between the kernel's bind and the report of it.
        let is_told = event.kind == EventKind::Bind
            && known
                .as_ref()
                .is_some_and(|known| known.origin == Origin::Snapshot);
        let occupancy = self.update(event, known, is_told);
        let mut first_reach = false;
        if event.kind == EventKind::Accept {
            let stranger = key.is_none().then(|| (occupancy.netns, Place::of(event)));
            let reached = occupancy.reached || stranger.is_some_and(|it| self.table.is_reached(it));
            first_reach = !reached && self.is_from_elsewhere(event);
            if let Some(stranger) = stranger.filter(|_| first_reach) {
                self.table.reach(stranger);
            }
            if let Some(key) = key {
                self.table.accepted(key, first_reach, event.time);
            }
        }
        if let Some(key) = key {
            self.table.store(key, &occupancy, event.kind);
        }
        if is_told {
            return;
        }
        let mut alert = self.alert(event, &occupancy, key, Origin::Live);
        alert.severity = default_severity(event.kind, event.transport, first_reach);
        self.tell(alert, alerts);
    }

    /// Adds what the operator should read of each of what was counted as that event.
    pub fn repeat(&mut self, event: &Event, alerts: &mut Vec<Alert>) {
        let known = event.key.and_then(|key| self.table.known(key)).cloned();
        let occupancy = self.update(event, known, true);
        let alert = self.alert(event, &occupancy, event.key, Origin::Live);
        self.tell(alert, alerts);
    }

    /// Adds the alert as the rules want it.
    fn tell(&self, mut alert: Alert, alerts: &mut Vec<Alert>) {
        let verdict = self.policy.decide(&alert.facts(), alert.severity);
        let Some(severity) = verdict.severity else {
            return;
        };
        if let Some(rule) = verdict.rule {
            let denies = rule.decision == Decision::Deny;
            let is_open = matches!(alert.event, EventKind::Bind | EventKind::Listen);
            if denies && !self.dry_run && is_open {
                let why = match (alert.origin, alert.socket.kernel) {
                    (Origin::Snapshot, _) => "not refused: it was there before",
                    (_, Some(true)) => "not refused: the kernel's own",
                    _ => "not refused: the kernel asks no hook here",
                };
                alert.detail = Some(Printable::from(why));
            }
            alert.rule = Some(RuleInfo {
                name: Printable::from(rule.name.as_str()),
                reason: rule.reason.as_deref().map(Printable::from),
                decision: rule.decision,
                dry_run: denies && self.dry_run,
            });
        }
        alert.severity = severity;
        alerts.push(alert);
    }

    fn alert(
        &mut self,
        event: &Event,
        occupancy: &TrackedSocket,
        key: Option<SocketKey>,
        origin: Origin,
    ) -> Alert {
        let host_netns = self.host.host_netns();
        Alert {
            schema: SCHEMA,
            time: event.time,
            host: self.name.clone(),
            event: event.kind,
            severity: default_severity(event.kind, event.transport, false),
            origin,
            port: Some(event.port),
            transport: Some(event.transport),
            family: event.address.map(Family::from),
            address: event.address,
            peer: event.peer.map(|peer| Peer {
                address: peer.ip(),
                port: peer.port(),
            }),
            registry: self.quote(event.port, event.transport),
            socket: Socket {
                // An accept that names no listener has that of the one it was found to belong to.
                cookie: key.and_then(SocketKey::cookie),
                netns: occupancy.netns,
                host_netns: occupancy
                    .netns
                    .zip(host_netns)
                    .map(|(its, host)| its == host),
                kernel: occupancy.is_kernel_socket,
            },
            since: occupancy.since,
            process: occupancy.process.clone(),
            holders: Rc::clone(&occupancy.holders),
            rule: None,
            accepts: None,
            summary: None,
            lost: None,
            detail: None,
        }
    }

    /// The registry's word, made once.
    fn quote(&mut self, port: u16, transport: Transport) -> Option<Rc<RegistryEntry>> {
        if let Some(word) = self.words.get(&(port, transport)) {
            return Some(Rc::clone(word));
        }
        let verdict = self.registry.entry(port, transport)?;
        let word = Rc::new(RegistryEntry::new(verdict, self.registry.as_of()));
        self.words.insert((port, transport), Rc::clone(&word));
        Some(word)
    }

    /// The alert for reports that found the ring full.
    pub fn lose(&self, count: u64) -> Alert {
        Alert::loss(count, self.name.clone())
    }

    /// The alert for a part of the monitor that was lost or regained.
    pub fn report_health(&self, severity: Severity, detail: &str) -> Alert {
        Alert::health(severity, Printable::from(detail), self.name.clone())
    }

    /// Tracker that were forgotten since the last call, because there were too many.
    pub const fn take_forgotten(&mut self) -> u64 {
        self.table.take_forgotten()
    }

    /// Whether a snapshot would tell more: who holds a socket that was just taken, or whether one is
    /// still there whose close is not reported.
    pub fn wants_snapshot(&self) -> bool {
        self.table.wants_snapshot()
    }

    /// Whether there are tracker whose close nobody reports.
    pub fn has_unmarked(&self) -> bool {
        self.table.has_unmarked()
    }

    /// The event's occupancy as it is from this event on.
    fn update(
        &mut self,
        event: &Event,
        known: Option<TrackedSocket>,
        is_told: bool,
    ) -> TrackedSocket {
        let mut occupancy = known.unwrap_or_else(|| TrackedSocket::new(Place::of(event)));
        let stage = Stage::after(event.kind);
        if let Some(stage) = stage {
            if !is_told {
                occupancy.stage = stage;
            }
            // A bind's word stands: no other hook looks.
            occupancy.is_kernel_socket = occupancy.is_kernel_socket.or(event.is_kernel_socket);
            occupancy.address = event.address;
            occupancy.since = occupancy.since.or(match occupancy.origin {
                Origin::Live => Some(event.time),
                Origin::Snapshot => None,
            });
        }
        match event.binder {
            // Of its own bind nothing was told; that of another socket of the process was.
            Some(pid) => occupancy.process = occupancy.process.or_else(|| self.host.recall(pid)),
            None if stage.is_some() || event.kind == EventKind::Deny => {
                self.name_actor(event, &mut occupancy);
            }
            None => {}
        }
        if let Some((cookie, inode)) = event.netns_cookie.zip(event.netns) {
            self.host.learn(cookie, inode);
        }
        occupancy.netns = occupancy.netns.or(event.netns);
        if occupancy.netns.is_none() {
            let actor = event.task.as_ref().map(|task| task.tid);
            let tid = actor.or_else(|| occupancy.process.as_ref().map(|process| process.pid));
            occupancy.netns = match event.netns_cookie {
                Some(cookie) => self.host.netns(cookie, tid),
                None => actor.and_then(|tid| self.host.thread_netns(tid)),
            };
        }
        occupancy
    }

    /// Notes who acted, who has the socket open by that.
    fn name_actor(&mut self, event: &Event, occupancy: &mut TrackedSocket) {
        if occupancy.is_kernel_socket == Some(true) {
            return;
        }
        if let Some(task) = &event.task {
            let now = self.host.identify(task, event.time);
            let actor = fuller(now, occupancy.process.take());
            if !occupancy
                .holders
                .iter()
                .any(|holder| holder.pid == actor.pid)
            {
                let others = occupancy.holders.iter().cloned();
                occupancy.holders = others.chain([Holder::from(&*actor)]).collect();
            }
            occupancy.process = Some(actor);
        } else if occupancy.process.is_none() {
            occupancy.process = self.host.holder(event);
            occupancy.holders = occupancy
                .process
                .iter()
                .map(|one| Holder::from(&**one))
                .collect();
        }
    }

    /// The occupancy that an event without a key is about: an accept of a listener from before the
    /// kernel side.
    fn stranger(&mut self, event: &Event) -> Option<SocketKey> {
        let netns = event
            .netns_cookie
            .and_then(|cookie| self.host.netns(cookie, None));
        self.table.at(Place::of(event), event.address, netns)
    }

    fn is_from_elsewhere(&mut self, event: &Event) -> bool {
        let mut is_own = |peer| Some(peer) == event.address || self.host.is_own_address(peer);
        event.peer.is_some_and(|peer| !is_own(peer.ip()))
    }
}

/// `now`, or what was known of the same process before when it is gone by now.
fn fuller(now: Rc<Process>, before: Option<Rc<Process>>) -> Rc<Process> {
    match before {
        Some(before) if before.pid == now.pid && now.exe.is_none() => before,
        _ => now,
    }
}

#[cfg(test)]
mod tests;
