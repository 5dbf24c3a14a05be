//! The rules of iptables and ip6tables, as `iptables-save` writes them (iptables 1.8.9).
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::rules::{Action, Chains, Match, Rule};
use crate::model::Transport;

/// The chains in that text. `program` is for their shown names.
pub(super) fn parse(text: &str, program: &str) -> Chains<String> {
    let entry = |chain: &str| (chain.to_owned(), format!("{program} nat {chain}"));
    let mut chains = Chains {
        entries: ["PREROUTING", "OUTPUT"].map(entry).into(),
        rules: HashMap::new(),
    };
    let mut is_nat = false;
    for line in text.lines() {
        if let Some(table) = line.strip_prefix('*') {
            is_nat = table == "nat";
        } else if let Some(rest) = line.strip_prefix("-A ").filter(|_| is_nat)
            && let Some(words) = shlex::split(rest)
            && let Some((chain, options)) = words.split_first()
        {
            let rules = chains.rules.entry(chain.clone()).or_default();
            rules.push(rule(options));
        }
    }
    chains
}

fn rule(options: &[String]) -> Rule<String> {
    let mut matches = Vec::new();
    let mut actions = Vec::new();
    let mut is_not = false;
    let mut words = options.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word == "!" {
            is_not = true;
            continue;
        }
        let negated = std::mem::take(&mut is_not);
        match word {
            "-p" => {
                let transport = words.next().and_then(transport);
                // Of all others, which have no ports or others than these, nothing follows.
                matches
                    .extend((!negated).then(|| Match::transports(transport.into_iter().collect())));
            }
            "--dport" | "--dports" | "--ports" => matches.push(Match {
                transports: None,
                ports: words.next().and_then(ranges),
                is_in: !negated,
            }),
            "-j" | "-g" => actions.extend(words.next().map(|target| match target {
                "REDIRECT" => Action::Redirect("REDIRECT"),
                "DNAT" => Action::Redirect("DNAT"),
                chain => Action::Jump(chain.to_owned(), None),
            })),
            _ => {}
        }
    }
    Rule { matches, actions }
}

fn transport(name: &str) -> Option<Transport> {
    let by_number = || Transport::from_protocol(name.parse().ok()?);
    Transport::from_name(name).or_else(by_number)
}

/// `976,980:985`.
fn ranges(text: &str) -> Option<Vec<(u16, u16)>> {
    let range = |one: &str| {
        let (first, last) = one.split_once(':').unwrap_or((one, one));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.split(',').map(range).collect()
}
