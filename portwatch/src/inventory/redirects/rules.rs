//! Chains of rules, whichever program shows them, and which ports they redirect.
#![forbid(unsafe_code)]

use std::{collections::HashMap, hash::Hash};

use super::{Redirect, Redirects};
use crate::model::{PortKey, Transport};

/// Chains that call each other, at most (`NFT_JUMP_STACK_SIZE` in include/net/netfilter/nf_tables.h,
/// Linux 6.18).
const DEPTH: u32 = 16;

/// Rules that are followed; a rule counts each time that it is reached.
const STEPS: u32 = 20_000;

/// A condition on the port. Conditions on anything else are not kept: the rule may redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Of which transports; None for all.
    pub(super) transports: Option<Vec<Transport>>,
    /// Which ports, both ends included; None for all.
    pub(super) ports: Option<Vec<(u16, u16)>>,
    /// Whether it holds for these ports, or for all others.
    pub(super) is_in: bool,
}

impl Match {
    /// A condition on the transport alone.
    pub(super) const fn transports(transports: Vec<Transport>) -> Self {
        Self {
            transports: Some(transports),
            ports: None,
            is_in: true,
        }
    }

    fn holds(&self, key: PortKey) -> bool {
        let transports = self.transports.as_ref();
        let is_transport = transports.is_none_or(|all| all.contains(&key.transport));
        let is_within = |(first, last): &(u16, u16)| (*first..=*last).contains(&key.port);
        let ports = self.ports.as_ref();
        is_transport && ports.is_none_or(|ranges| ranges.iter().any(is_within) == self.is_in)
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action<C> {
    /// Redirects, in the words of its program.
    Redirect(&'static str),
    /// Goes on with another chain, under a further condition.
    Jump(C, Option<Match>),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule<C> {
    /// All must hold.
    pub(super) matches: Vec<Match>,
    pub(super) actions: Vec<Action<C>>,
}

/// The chains of one program, by their names.
pub(super) struct Chains<C> {
    /// Name and shown name of those that the kernel calls.
    pub(super) entries: Vec<(C, String)>,
    pub(super) rules: HashMap<C, Vec<Rule<C>>>,
}

impl<C: Hash + Eq> Chains<C> {
    /// The redirects that the packets to `ports` may meet.
    pub(super) fn of_ports(&self, ports: &[PortKey]) -> Redirects {
        let mut redirects = Redirects::default();
        let mut steps = STEPS;
        for (chain, name) in &self.entries {
            let mut walk = Walk {
                chains: self,
                name,
                steps: &mut steps,
                out: &mut redirects,
            };
            walk.chain(chain, ports, DEPTH);
        }
        redirects
    }
}

struct Walk<'a, C> {
    chains: &'a Chains<C>,
    name: &'a str,
    steps: &'a mut u32,
    out: &'a mut Redirects,
}

impl<C: Hash + Eq> Walk<'_, C> {
    fn chain(&mut self, chain: &C, ports: &[PortKey], depth: u32) {
        let rules = self.chains.rules.get(chain);
        for rule in rules.into_iter().flatten() {
            if *self.steps == 0 || depth == 0 {
                self.out.is_partial = true;
                return;
            }
            *self.steps -= 1;
            let ports = narrowed(ports, &rule.matches);
            if ports.is_empty() {
                continue;
            }
            for action in &rule.actions {
                match action {
                    Action::Redirect(by) => self.out.all.push(Redirect {
                        chain: self.name.to_owned(),
                        by,
                        ports: ports.clone(),
                    }),
                    Action::Jump(to, condition) => {
                        let ports = narrowed(&ports, condition.as_slice());
                        if !ports.is_empty() {
                            self.chain(to, &ports, depth - 1);
                        }
                    }
                }
            }
        }
    }
}

fn narrowed(ports: &[PortKey], matches: &[Match]) -> Vec<PortKey> {
    let holds = |key: &PortKey| matches.iter().all(|one| one.holds(*key));
    ports.iter().copied().filter(holds).collect()
}
