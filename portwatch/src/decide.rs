//! What becomes of a tracked event: how much it matters, and which rule says so. Severity is set
//! here and nowhere else.
#![forbid(unsafe_code)]

use std::{collections::HashMap, rc::Rc};

use serde::Serialize;

use crate::{
    model::{EventKind, Origin, PortKey, Printable, Sessions, Severity},
    policy::{Claims, Decision, Facts, Policy, Rule, default_severity},
    process::Process,
    registry::{Registry, RegistryInfo},
    tracker::TrackedEvent,
};

/// Bytes in JSON of a rule's name and of its reason, as alerts quote them.
const MAX_RULE_NAME: usize = 128;
const MAX_REASON: usize = 512;

/// The rule that decided, as an alert quotes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleInfo {
    /// Its name.
    pub name: Printable,
    /// Why it is there.
    pub reason: Option<Printable>,
    /// Its decision.
    pub decision: Decision,
    /// Whether a `deny` is only tried out.
    pub dry_run: bool,
}

/// A tracked event that is worth an alert.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The event.
    pub event: TrackedEvent,
    /// The registry's entry for its port.
    pub registry: Option<Rc<RegistryInfo>>,
    /// How much it matters.
    pub severity: Severity,
    /// The rule that decided; None without one.
    pub rule: Option<RuleInfo>,
    /// Why a rule that denies did not.
    pub detail: Option<&'static str>,
    /// Whether the rule asks for the end of each connection.
    pub reports_sessions: bool,
    /// On a close, the connections of the socket; None without any.
    pub sessions: Option<Sessions>,
}

/// Decides by registry and rules.
pub struct Decider {
    registry: Registry,
    /// The entries of the ports that had events.
    entries: HashMap<PortKey, Rc<RegistryInfo>>,
    policy: Policy,
    dry_run: bool,
}

impl Decider {
    /// Decides by these. `dry_run`: rules that deny only say so.
    #[must_use]
    pub fn new(registry: Registry, policy: Policy, dry_run: bool) -> Self {
        Self {
            registry,
            entries: HashMap::new(),
            policy,
            dry_run,
        }
    }

    /// Other rules from now on.
    pub fn set_policy(&mut self, policy: Policy, dry_run: bool) {
        self.policy = policy;
        self.dry_run = dry_run;
    }

    /// The registry.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The decision; None when a rule ignores the event.
    pub fn decide(&mut self, event: TrackedEvent) -> Option<Decided> {
        let registry = self.entry(event.port_key);
        let by_default =
            default_severity(event.kind, event.port_key.transport, event.is_first_remote);
        let verdict = self
            .policy
            .decide(&facts(&event, registry.as_deref()), by_default);
        let severity = verdict.severity?;
        let mut detail = None;
        let reports_sessions = verdict.rule.is_some_and(Rule::reports_sessions);
        let rule = verdict.rule.map(|rule| {
            let denies = rule.decision == Decision::Deny;
            let takes_port = matches!(event.kind, EventKind::Bind | EventKind::Listen);
            if denies && !self.dry_run && takes_port {
                detail = Some(match (event.origin, event.is_kernel_socket) {
                    (Origin::Snapshot, _) => "not denied: bound before the monitor started",
                    (_, Some(true)) => "not denied: kernel socket",
                    // It is on the port although a hook ran.
                    _ if event.kind == EventKind::Bind => {
                        "not denied: the deny rules in the kernel allowed it, or it could not be undone"
                    }
                    _ => "not denied: no BPF hook for this operation",
                });
            }
            RuleInfo {
                name: Printable::limited(rule.name.as_bytes(), MAX_RULE_NAME),
                reason: rule
                    .reason
                    .as_deref()
                    .map(|reason| Printable::limited(reason.as_bytes(), MAX_REASON)),
                decision: rule.decision,
                dry_run: denies && self.dry_run,
            }
        });
        Some(Decided {
            event,
            registry,
            severity,
            rule,
            detail,
            reports_sessions,
            sessions: None,
        })
    }

    /// The registry's entry, made once a port.
    fn entry(&mut self, port: PortKey) -> Option<Rc<RegistryInfo>> {
        if let Some(entry) = self.entries.get(&port) {
            return Some(Rc::clone(entry));
        }
        let entry = Rc::new(self.registry.info(port)?);
        self.entries.insert(port, Rc::clone(&entry));
        Some(entry)
    }
}

/// What rules can match of a tracked event.
fn facts<'a>(event: &'a TrackedEvent, registry: Option<&RegistryInfo>) -> Facts<'a> {
    let process = event.process.as_deref();
    Facts {
        event: Some(event.kind),
        port: Some(event.port_key.port),
        transport: Some(event.port_key.transport),
        status: registry.map(|entry| entry.status),
        address: event.address,
        peer: event.peer.map(|peer| peer.ip()),
        uid: process.map(|process| process.uid),
        netns: event.netns,
        host_netns: event.is_host_netns,
        device: event.device.as_deref(),
        ..process.map(facts_of).unwrap_or_default()
    }
}

/// What rules can match of a process: what is certain, and what it claims.
fn facts_of(process: &Process) -> Facts<'_> {
    let verified = &process.verified;
    // Without a known cgroup, a container is unknown as well.
    let claimed = process.cgroup.as_ref().map(|_| process.container.is_some());
    Facts {
        exe: process.exe.as_deref().filter(|_| process.exe_verified),
        unit: verified.unit.as_ref().map(|unit| &*unit.name),
        container: claimed.and_then(|claimed| match verified.container {
            Some(_) => Some(true),
            None => (!claimed).then_some(false),
        }),
        cgroup: verified.cgroup.as_deref(),
        claims: Claims {
            exe: process.exe.as_deref(),
            unit: process.unit.as_deref(),
            container: claimed,
            cgroup: process.cgroup.as_deref(),
        },
        ..Facts::default()
    }
}
