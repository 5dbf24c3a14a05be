//! The rules of nftables, as `nft -j list ruleset` shows them (libnftables-json(5), nftables 1.0.6).
#![forbid(unsafe_code)]

use std::collections::HashMap;

use serde_json::Value;

use super::rules::{Action, Chains, Match, Rule};
use crate::model::Transport;

/// Family, table and name of a chain or set.
type Name = (String, String, String);

/// Elements of sets and maps.
type Sets<'a> = HashMap<Name, &'a Value>;

/// The chains in that JSON.
///
/// # Errors
///
/// When it is no JSON of this form.
pub(super) fn parse(json: &[u8]) -> Result<Chains<Name>, String> {
    let root: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let objects = root["nftables"].as_array().ok_or("no array of objects")?;
    let mut sets = Sets::new();
    let mut chains = Chains {
        entries: Vec::new(),
        rules: HashMap::new(),
    };
    for object in objects {
        for kind in ["set", "map"] {
            if let Some(set) = object.get(kind) {
                sets.insert(name(set, "name"), &set["elem"]);
            }
        }
        if let Some(chain) = object.get("chain")
            && chain["type"] == "nat"
            && matches!(chain["hook"].as_str(), Some("prerouting" | "output"))
        {
            let name = name(chain, "name");
            let shown = format!("{} {} {}", name.0, name.1, name.2);
            chains.entries.push((name, shown));
        }
    }
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let chain = name(rule, "chain");
        let (family, table, _) = &chain;
        let scope = Scope {
            sets: &sets,
            family,
            table,
        };
        let rule = scope.rule(rule);
        chains.rules.entry(chain).or_default().push(rule);
    }
    Ok(chains)
}

fn name(object: &Value, key: &str) -> Name {
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    (text("family"), text("table"), text(key))
}

/// Where the names in a rule belong.
struct Scope<'a> {
    sets: &'a Sets<'a>,
    family: &'a str,
    table: &'a str,
}

impl Scope<'_> {
    fn named(&self, name: &str) -> Name {
        (self.family.into(), self.table.into(), name.into())
    }

    fn rule(&self, rule: &Value) -> Rule<Name> {
        let mut matches = Vec::new();
        let mut actions = Vec::new();
        for statement in rule["expr"].as_array().into_iter().flatten() {
            let Some((kind, body)) = statement.as_object().and_then(|one| one.iter().next()) else {
                continue;
            };
            match kind.as_str() {
                "match" => {
                    matches.extend(self.condition(&body["left"], &body["right"], &body["op"]))
                }
                "redirect" => actions.push(Action::Redirect("redirect")),
                "dnat" => {
                    matches.extend(self.of_maps(body));
                    actions.push(Action::Redirect("dnat"));
                }
                "jump" | "goto" => actions.extend(self.jump(statement, None)),
                "vmap" => {
                    for element in self.elements(&body["data"]).into_iter().flatten() {
                        let condition = self.condition(&body["key"], &element[0], &Value::Null);
                        actions.extend(self.jump(&element[1], condition));
                    }
                }
                _ => {}
            }
        }
        Rule { matches, actions }
    }

    /// The jump that a verdict stands for, if it is one.
    fn jump(&self, verdict: &Value, condition: Option<Match>) -> Option<Action<Name>> {
        let target = ["jump", "goto"].map(|kind| verdict[kind]["target"].as_str());
        let target = target.into_iter().flatten().next()?;
        Some(Action::Jump(self.named(target), condition))
    }

    /// The ports that an address or port is looked up by: others are not redirected.
    fn of_maps(&self, dnat: &Value) -> Vec<Match> {
        let maps = ["addr", "port"].map(|part| &dnat[part]["map"]);
        let condition = |map: &Value| {
            let keys = self.elements(&map["data"])?.iter().map(|pair| &pair[0]);
            let keys = Value::Array(keys.cloned().collect());
            self.condition(&map["key"], &keys, &Value::Null)
        };
        maps.into_iter().filter_map(condition).collect()
    }

    /// The condition on the port or the transport that `left op right` is; None for any other.
    fn condition(&self, left: &Value, right: &Value, op: &Value) -> Option<Match> {
        let parts = left["concat"].as_array();
        let (index, field) = match parts {
            Some(parts) => {
                let index = parts.iter().position(is_port)?;
                (Some(index), parts.get(index)?)
            }
            None => (None, left),
        };
        let op = op.as_str().unwrap_or("==");
        if !is_port(field) {
            let is_transport = field["meta"]["key"] == "l4proto"
                || matches!(
                    field["payload"]["field"].as_str(),
                    Some("protocol" | "nexthdr")
                );
            let values = self.values(right)?;
            let named = values.into_iter().map(transport);
            return (is_transport && matches!(op, "==" | "in"))
                .then(|| Match::transports(named.flatten().collect()));
        }
        let transport = field["payload"]["protocol"]
            .as_str()
            .and_then(Transport::from_name);
        let ranges = self.values(right).and_then(|values| {
            let part = |value| match index {
                Some(index) => &element(value)["concat"][index],
                None => element(value),
            };
            values.into_iter().map(|value| range(part(value))).collect()
        });
        let ranges: Option<Vec<(u16, u16)>> = match (op, ranges) {
            ("==" | "in" | "!=", ranges) => ranges,
            (op, Some(ranges)) => match (op, ranges.first()) {
                ("<", Some((port, _))) => Some(vec![(0, port.saturating_sub(1))]),
                ("<=", Some((port, _))) => Some(vec![(0, *port)]),
                (">", Some((port, _))) => Some(vec![(port.saturating_add(1), u16::MAX)]),
                (">=", Some((port, _))) => Some(vec![(*port, u16::MAX)]),
                _ => None,
            },
            _ => None,
        };
        Some(Match {
            transports: transport.map(|one| vec![one]),
            // Of a concatenation, another part can be what is not in the set.
            ports: ranges.filter(|_| index.is_none() || op != "!="),
            is_in: op != "!=",
        })
    }

    /// The elements of a set or map, named or not.
    fn elements<'b>(&'b self, set: &'b Value) -> Option<&'b Vec<Value>> {
        if let Some(name) = set.as_str().and_then(|name| name.strip_prefix('@')) {
            return self.sets.get(&self.named(name))?.as_array();
        }
        set["set"].as_array().or_else(|| set.as_array())
    }

    /// The values on the right of a condition.
    fn values<'b>(&'b self, right: &'b Value) -> Option<Vec<&'b Value>> {
        let is_named = right.as_str().is_some_and(|name| name.starts_with('@'));
        match self.elements(right) {
            Some(elements) => Some(elements.iter().collect()),
            None if is_named => None,
            None => Some(vec![right]),
        }
    }
}

/// An element without what a set keeps beside it.
fn element(value: &Value) -> &Value {
    match value.get("elem") {
        Some(wrapped) => &wrapped["val"],
        None => value,
    }
}

fn is_port(field: &Value) -> bool {
    field["payload"]["field"] == "dport"
}

fn range(value: &Value) -> Option<(u16, u16)> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match value.get("range") {
        Some(ends) => Some((port(&ends[0])?, port(&ends[1])?)),
        None => port(value).map(|port| (port, port)),
    }
}

fn transport(value: &Value) -> Option<Transport> {
    let by_number = |number: u64| Transport::from_protocol(u8::try_from(number).ok()?);
    match element(value) {
        Value::String(name) => Transport::from_name(name),
        number => number.as_u64().and_then(by_number),
    }
}
