//! The configuration file: TOML to rules and settings. Every error has its place.

use std::{collections::HashMap, ops::Range, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    error::Place,
    values::{HumanDuration, OneOrMany, Within, unknown},
};
use crate::{
    aggregate::Settings,
    model::{EventKind, Transport},
    policy::{
        Address, Condition, Decision, NamePattern, Netns, Network, Policy, PortRange, Rule,
        RuleError, User,
    },
    registry::Status,
    sensor::ReceiveSettings,
};

/// The contents of a file.
#[derive(Debug)]
pub(super) struct Contents {
    pub policy: Policy,
    pub aggregate: Settings,
    pub receive: ReceiveSettings,
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

/// Rules in a file.
const MAX_RULES: usize = 10_000;

/// Values with wildcards in a file: each is compiled.
const MAX_PATTERNS: usize = 1000;

/// Bytes of a rule's name and of its reason: they are in each alert that it decides.
const MAX_NAME: usize = 256;
const MAX_REASON: usize = 1024;

/// Beyond a day nobody waits for a summary, and a deadline could be past the end of the clock.
const INTERVAL: Within<Duration> = Within {
    min: Duration::from_millis(100),
    max: Duration::from_secs(86_400),
};
const IDLE_TIMEOUT: Within<Duration> = Within {
    min: Duration::from_millis(10),
    max: Duration::from_secs(86_400),
};
/// What lasts is reported within a second.
const BIND_DELAY: Within<Duration> = Within {
    min: Duration::ZERO,
    max: Duration::from_secs(1),
};
/// Alerts that are printed one by one before aggregation begins.
const BURST: Within<u32> = Within {
    min: 1,
    max: 1_000_000,
};

/// Names that are still read. They are not suggested.
const DEPRECATED: [&str; 3] = ["collapse", "pause", "hold"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<RawRule>,
    aggregate: Option<Spanned<RawAggregate>>,
    collapse: Option<Spanned<RawAggregate>>,
    receive: Option<RawReceive>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Spanned<String>,
    reason: Option<Spanned<String>>,
    decide: Decision,
    #[serde(default)]
    unverified: bool,
    #[serde(default)]
    sessions: bool,
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
    device: Option<Spanned<OneOrMany<NamePattern>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAggregate {
    enabled: Option<bool>,
    burst: Option<Spanned<u32>>,
    max_rate: Option<u32>,
    interval: Option<Spanned<HumanDuration>>,
    idle_timeout: Option<Spanned<HumanDuration>>,
    bind_delay: Option<Spanned<HumanDuration>>,
    pause: Option<Spanned<HumanDuration>>,
    hold: Option<Spanned<HumanDuration>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReceive {
    enabled: Option<bool>,
    max_rate: Option<u32>,
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
        Some(table) => settings(table.into_inner(), &mut deprecated)?,
        None => Settings::default(),
    };
    Ok(Contents {
        policy: policy(text, file.rule)?,
        aggregate,
        receive: receive(file.receive.as_ref()),
        deprecated: deprecated.found,
    })
}

fn policy(text: &str, raw: Vec<RawRule>) -> Result<Policy, Problem> {
    if let Some(further) = raw.get(MAX_RULES) {
        let problem = format!(
            "{} rules; a file has at most {MAX_RULES}: one rule can list ports, users and names",
            raw.len()
        );
        return Err((further.name.span(), problem));
    }
    let mut rules: Vec<Rule> = Vec::with_capacity(raw.len());
    let mut places: Vec<RulePlaces> = Vec::with_capacity(raw.len());
    let mut starts: HashMap<String, usize> = HashMap::with_capacity(raw.len());
    let mut patterns = 0;
    for raw in raw {
        check_lengths(&raw)?;
        let (rule, place) = rule(raw);
        if let Some(first) = starts.insert(rule.name.clone(), place.name.start) {
            let line = Place::of(text, first).line;
            let problem = format!("a second rule {:?}; the first is in line {line}", rule.name);
            return Err((place.name, problem));
        }
        patterns += rule.patterns();
        if patterns > MAX_PATTERNS {
            let problem = format!("a file has at most {MAX_PATTERNS} values with wildcards");
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

fn check_lengths(raw: &RawRule) -> Result<(), Problem> {
    let texts = [
        ("name", Some(&raw.name), MAX_NAME),
        ("reason", raw.reason.as_ref(), MAX_REASON),
    ];
    for (key, text, max) in texts {
        if let Some(text) = text.filter(|text| text.get_ref().len() > max) {
            return Err((text.span(), format!("{key} has more than {max} bytes")));
        }
    }
    Ok(())
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
        values(raw.device, Condition::Device),
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
        reason: raw.reason.map(Spanned::into_inner),
        decision: raw.decide,
        unverified: raw.unverified,
        sessions: raw.sessions,
        conditions: conditions.collect(),
    };
    (rule, places)
}

fn settings(raw: RawAggregate, deprecated: &mut Renames<'_>) -> Result<Settings, Problem> {
    let default = Settings::default();
    let idle_timeout = deprecated.either(raw.pause, raw.idle_timeout, ("pause", "idle_timeout"))?;
    let bind_delay = deprecated.either(raw.hold, raw.bind_delay, ("hold", "bind_delay"))?;
    let burst = match raw.burst {
        Some(burst) if *burst.get_ref() < BURST.min => {
            return Err((
                burst.span(),
                "burst must be at least 1: the first alert of a burst is always printed".into(),
            ));
        }
        Some(burst) if *burst.get_ref() > BURST.max => {
            return Err((burst.span(), format!("burst must be at most {}", BURST.max)));
        }
        Some(burst) => burst.into_inner(),
        None => default.burst,
    };
    Ok(Settings {
        enabled: raw.enabled.unwrap_or(default.enabled),
        burst,
        max_rate: raw.max_rate.unwrap_or(default.max_rate),
        interval: duration(raw.interval, "interval", &INTERVAL)?.unwrap_or(default.interval),
        idle_timeout: duration(idle_timeout, "idle_timeout", &IDLE_TIMEOUT)?
            .unwrap_or(default.idle_timeout),
        bind_delay: duration(bind_delay, "bind_delay", &BIND_DELAY)?.unwrap_or(default.bind_delay),
        sessions: default.sessions,
    })
}

fn receive(raw: Option<&RawReceive>) -> ReceiveSettings {
    let default = ReceiveSettings::default();
    let max_rate = raw.and_then(|raw| raw.max_rate).map(u64::from);
    ReceiveSettings {
        enabled: raw.and_then(|raw| raw.enabled).unwrap_or(default.enabled),
        max_rate: max_rate.unwrap_or(default.max_rate),
    }
}

fn duration(
    raw: Option<Spanned<HumanDuration>>,
    key: &str,
    within: &Within<Duration>,
) -> Result<Option<Duration>, Problem> {
    let Some(raw) = raw else {
        return Ok(None);
    };
    let span = raw.span();
    let value = within.check(key, raw.into_inner().0);
    value.map(Some).map_err(|problem| (span, problem))
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
    ) -> Result<Option<Spanned<T>>, Problem> {
        let Some(old) = old else {
            return Ok(new);
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
        Ok(Some(old))
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
