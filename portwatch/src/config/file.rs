//! The configuration file: TOML to rules and settings. Every error has its place.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::{
    error::Place,
    values::{HumanDuration, OneOrMany, unknown},
};
use crate::{
    aggregate::Settings,
    model::{EventKind, Transport},
    policy::{
        Address, Condition, Decision, NamePattern, Netns, Network, Policy, PortRange, Rule,
        RuleError, User,
    },
    registry::Status,
};

/// The contents of a file.
#[derive(Debug)]
pub(super) struct Contents {
    pub policy: Policy,
    pub aggregate: Settings,
    pub deprecated: Vec<Deprecated>,
}

/// A use of an old name.
#[derive(Debug)]
pub(super) struct Deprecated {
    pub place: Place,
    pub old: &'static str,
    pub new: &'static str,
}

/// The bytes of the file that are to blame, and the problem.
pub(super) type Problem = (Range<usize>, String);

/// Names that are still read. They are not suggested.
const DEPRECATED: [&str; 3] = ["collapse", "pause", "hold"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<RawRule>,
    aggregate: Option<Spanned<RawAggregate>>,
    collapse: Option<Spanned<RawAggregate>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Spanned<String>,
    reason: Option<String>,
    decide: Decision,
    #[serde(default)]
    unverified: bool,
    port: Option<Spanned<OneOrMany<PortRange>>>,
    transport: Option<Spanned<OneOrMany<Transport>>>,
    status: Option<Spanned<OneOrMany<Status>>>,
    event: Option<Spanned<OneOrMany<EventKind>>>,
    address: Option<Spanned<OneOrMany<Address>>>,
    peer: Option<Spanned<OneOrMany<Network>>>,
    exe: Option<Spanned<OneOrMany<NamePattern>>>,
    user: Option<Spanned<OneOrMany<User>>>,
    unit: Option<Spanned<OneOrMany<NamePattern>>>,
    container: Option<Spanned<bool>>,
    cgroup: Option<Spanned<OneOrMany<NamePattern>>>,
    netns: Option<Spanned<OneOrMany<Netns>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAggregate {
    enabled: Option<bool>,
    burst: Option<Spanned<u32>>,
    max_rate: Option<u32>,
    interval: Option<HumanDuration>,
    idle_timeout: Option<Spanned<HumanDuration>>,
    bind_delay: Option<Spanned<HumanDuration>>,
    pause: Option<Spanned<HumanDuration>>,
    hold: Option<Spanned<HumanDuration>>,
}

/// Reads the text of a file.
pub(super) fn parse(text: &str) -> Result<Contents, Problem> {
    let file: File = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        (span, suggest(error.message()))
    })?;
    let mut deprecated = Renames {
        text,
        found: Vec::new(),
    };
    let table = deprecated.either(file.collapse, file.aggregate, ("[collapse]", "[aggregate]"))?;
    let aggregate = match table {
        Some(table) => settings(table, &mut deprecated)?,
        None => Settings::default(),
    };
    Ok(Contents {
        policy: policy(text, file.rule)?,
        aggregate,
        deprecated: deprecated.found,
    })
}

fn policy(text: &str, raw: Vec<RawRule>) -> Result<Policy, Problem> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut places: Vec<RulePlaces> = Vec::new();
    for raw in raw {
        let (rule, place) = rule(raw);
        if let Some(first) = rules.iter().position(|known| known.name == rule.name) {
            let line = Place::of(text, places[first].name.start).line;
            let problem = format!("a second rule {:?}; the first is in line {line}", rule.name);
            return Err((place.name, problem));
        }
        rules.push(rule);
        places.push(place);
    }
    Policy::new(rules).map_err(|RuleError { rule, key, problem }| {
        let span = places.get(rule).map(|places| places.of(key));
        (span.unwrap_or(0..0), problem)
    })
}

/// Where a rule's name and its conditions' values are.
struct RulePlaces {
    name: Range<usize>,
    keys: Vec<(&'static str, Range<usize>)>,
}

impl RulePlaces {
    fn of(&self, key: Option<&str>) -> Range<usize> {
        let value = self.keys.iter().find(|(one, _)| Some(*one) == key);
        value.map_or(&self.name, |(_, span)| span).clone()
    }
}

fn rule(raw: RawRule) -> (Rule, RulePlaces) {
    fn values<T>(
        raw: Option<Spanned<OneOrMany<T>>>,
        condition: fn(Vec<T>) -> Condition,
    ) -> Option<(Condition, Range<usize>)> {
        raw.map(|raw| {
            let span = raw.span();
            (condition(raw.into_inner().0), span)
        })
    }
    let container = raw.container.map(|raw| {
        let span = raw.span();
        (Condition::Container(raw.into_inner()), span)
    });
    let conditions = [
        values(raw.port, Condition::Port),
        values(raw.transport, Condition::Transport),
        values(raw.status, Condition::Status),
        values(raw.event, Condition::Event),
        values(raw.address, Condition::Address),
        values(raw.peer, Condition::Peer),
        values(raw.exe, Condition::Exe),
        values(raw.user, Condition::User),
        values(raw.unit, Condition::Unit),
        container,
        values(raw.cgroup, Condition::Cgroup),
        values(raw.netns, Condition::Netns),
    ];
    let mut places = RulePlaces {
        name: raw.name.span(),
        keys: Vec::new(),
    };
    let conditions = conditions.into_iter().flatten().map(|(condition, span)| {
        places.keys.push((condition.key(), span));
        condition
    });
    let rule = Rule {
        name: raw.name.into_inner(),
        reason: raw.reason,
        decision: raw.decide,
        unverified: raw.unverified,
        conditions: conditions.collect(),
    };
    (rule, places)
}

fn settings(raw: RawAggregate, deprecated: &mut Renames<'_>) -> Result<Settings, Problem> {
    let default = Settings::default();
    let idle_timeout = deprecated.either(raw.pause, raw.idle_timeout, ("pause", "idle_timeout"))?;
    let bind_delay = deprecated.either(raw.hold, raw.bind_delay, ("hold", "bind_delay"))?;
    let burst = match raw.burst {
        Some(burst) if *burst.get_ref() == 0 => {
            return Err((
                burst.span(),
                "burst must be at least 1: the first alert of a burst is always printed".into(),
            ));
        }
        Some(burst) => burst.into_inner(),
        None => default.burst,
    };
    Ok(Settings {
        enabled: raw.enabled.unwrap_or(default.enabled),
        burst,
        max_rate: raw.max_rate.unwrap_or(default.max_rate),
        interval: raw.interval.map_or(default.interval, |interval| interval.0),
        idle_timeout: idle_timeout.map_or(default.idle_timeout, |timeout| timeout.0),
        bind_delay: bind_delay.map_or(default.bind_delay, |delay| delay.0),
    })
}

/// Collects the uses of old names.
struct Renames<'a> {
    text: &'a str,
    found: Vec<Deprecated>,
}

impl Renames<'_> {
    /// The value under its old or its new name; an error when there are both.
    fn either<T>(
        &mut self,
        old: Option<Spanned<T>>,
        new: Option<Spanned<T>>,
        names: (&'static str, &'static str),
    ) -> Result<Option<T>, Problem> {
        let Some(old) = old else {
            return Ok(new.map(Spanned::into_inner));
        };
        let place = Place::of(self.text, old.span().start);
        if let Some(new) = new {
            let problem = format!(
                "{} is also given by its old name, {}, in line {}",
                names.1, names.0, place.line
            );
            return Err((new.span(), problem));
        }
        self.found.push(Deprecated {
            place,
            old: names.0,
            new: names.1,
        });
        Ok(Some(old.into_inner()))
    }
}

/// Rewrites serde's message on an unknown key or variant to suggest the nearest known one.
fn suggest(message: &str) -> String {
    let what = if message.starts_with("unknown field") {
        "key"
    } else if message.starts_with("unknown variant") {
        "value"
    } else {
        return message.replace('`', "\"");
    };
    let mut quoted = message.split('`').skip(1).step_by(2);
    let text = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.filter(|name| !DEPRECATED.contains(name)).collect();
    unknown(what, text, &known)
}
