//! Reads the operator's file. Whatever is wrong with it is said with its place.

use std::{
    fmt,
    marker::PhantomData,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use jiff::SignedDuration;
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};
use toml::Spanned;

use super::{
    Policy, Rule, refusal,
    rule::Decision,
    values::{Address, Names, NetnsName, Network, Ports, UserName},
};
use crate::{
    aggregate::Settings,
    model::{EventKind, Transport},
    registry::Status,
};

/// Where the file is when nobody says so; that it is not there is no error then.
pub const DEFAULT_PATH: &str = "/etc/portwatch/portwatch.toml";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It makes no sense.
    #[error("{}:{line}:{column}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        line: usize,
        /// From 1 on.
        column: usize,
        /// What is wrong, and often what would be right.
        problem: String,
    },
}

/// What is wrong, and with which rule.
#[derive(Debug)]
pub(super) struct Complaint {
    rule: String,
    problem: String,
}

impl Complaint {
    pub(super) fn of(rule: &Rule, problem: String) -> Self {
        Self {
            rule: rule.name.clone(),
            problem: format!("rule {:?} {problem}", rule.name),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<RawRule>,
    #[serde(default)]
    collapse: RawQuiet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Spanned<String>,
    reason: Option<String>,
    decide: Decision,
    port: Option<Many<Ports>>,
    transport: Option<Many<Transport>>,
    status: Option<Many<Status>>,
    event: Option<Spanned<Many<EventKind>>>,
    address: Option<Many<Address>>,
    peer: Option<Spanned<Many<Network>>>,
    exe: Option<Spanned<Many<Names>>>,
    user: Option<Many<UserName>>,
    unit: Option<Many<Names>>,
    container: Option<bool>,
    cgroup: Option<Spanned<Many<Names>>>,
    netns: Option<Many<NetnsName>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQuiet {
    enabled: Option<bool>,
    burst: Option<Spanned<u32>>,
    interval: Option<Span>,
    pause: Option<Span>,
    hold: Option<Span>,
}

/// A length of time: `60s`, `1 min`, `500 ms`.
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let span: SignedDuration = text.parse().map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is no length of time; write \"60s\" or \"500ms\""
            ))
        })?;
        Duration::try_from(span)
            .map(Self)
            .map_err(|_| de::Error::custom(format!("{text:?} is less than nothing")))
    }
}

/// One value or a list of them, each a string or a number.
struct Many<T>(Vec<T>);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values<T>(PhantomData<T>);

        impl<'de, T: FromStr<Err = String>> Visitor<'de> for Values<T> {
            type Value = Vec<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a value or a list of values")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
                Ok(vec![text.parse().map_err(E::custom)?])
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Vec<T>, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(Many(one)) = values.next_element::<Many<T>>()? {
                    all.extend(one);
                }
                if all.is_empty() {
                    return Err(de::Error::custom(
                        "an empty list never matches; leave the key out",
                    ));
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Values(PhantomData)).map(Many)
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_name(text).ok_or_else(|| unknown("transport", text, &Self::ALL.map(Self::name)))
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|status| status.name() == text);
        found.ok_or_else(|| unknown("status", text, &Self::ALL.map(Self::name)))
    }
}

impl FromStr for EventKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::OF_SOCKETS
            .into_iter()
            .find(|event| event.name() == text);
        found.ok_or_else(|| unknown("event", text, &Self::OF_SOCKETS.map(Self::name)))
    }
}

/// Says that there is no such thing, which there are, and which was probably meant.
fn unknown(what: &str, text: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known, text), known))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map(|(_, known)| format!("; did you mean \"{known}\"?"))
        .unwrap_or_default();
    format!(
        "unknown {what} {text:?}{near} (known: {})",
        known.join(", ")
    )
}

impl Policy {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io {
            path: path.into(),
            source,
        })?;
        Self::parse(&text).map_err(|(span, problem)| {
            let before = text.get(..span.start).unwrap_or(&text);
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            ConfigError::Malformed {
                path: path.into(),
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                problem,
            }
        })
    }

    /// Reads the text of a file; an error with its place.
    pub(super) fn parse(text: &str) -> Result<Self, (Range<usize>, String)> {
        let file: File = toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            (span, suggest(error.message()))
        })?;
        let mut rules: Vec<Rule> = Vec::new();
        let mut places: Vec<Range<usize>> = Vec::new();
        for raw in file.rule {
            let span = raw.name.span();
            if let Some(index) = rules
                .iter()
                .position(|rule| rule.name == *raw.name.get_ref())
            {
                let line = text[..places[index].start].matches('\n').count() + 1;
                let problem = format!(
                    "a second rule {:?}; the first is in line {line}",
                    raw.name.get_ref()
                );
                return Err((span, problem));
            }
            rules.push(rule(raw)?);
            places.push(span);
        }
        refusal::check(&rules).map_err(|Complaint { rule, problem }| {
            let place = rules.iter().position(|one| one.name == rule);
            let span = place.and_then(|index| places.get(index).cloned());
            (span.unwrap_or(0..0), problem)
        })?;
        let default = Settings::default();
        let quiet = file.collapse;
        let burst = match quiet.burst {
            Some(burst) if *burst.get_ref() == 0 => {
                return Err((
                    burst.span(),
                    "burst must be 1 at least: what begins is always told".into(),
                ));
            }
            Some(burst) => burst.into_inner(),
            None => default.burst,
        };
        Ok(Self {
            all: false,
            dry_run: false,
            rules,
            quiet: Settings {
                enabled: quiet.enabled.unwrap_or(default.enabled),
                burst,
                interval: quiet.interval.map_or(default.interval, |span| span.0),
                idle_timeout: quiet.pause.map_or(default.idle_timeout, |span| span.0),
                bind_delay: quiet.hold.map_or(default.bind_delay, |span| span.0),
            },
        })
    }
}

/// The rule, unless it can never match.
fn rule(raw: RawRule) -> Result<Rule, (Range<usize>, String)> {
    let never = |span: Range<usize>, why: String| Err((span, why));
    let events = raw.event.as_ref().map(|events| &events.get_ref().0);
    if let (Some(events), Some(peer)) = (events, &raw.peer)
        && !events
            .iter()
            .any(|event| matches!(event, EventKind::Accept | EventKind::Connect))
    {
        return never(
            peer.span(),
            "only accept and connect have a peer: with that event this never matches".into(),
        );
    }
    for (key, names) in [("exe", &raw.exe), ("cgroup", &raw.cgroup)] {
        for name in names.iter().flat_map(|names| &names.get_ref().0) {
            if !name.text.starts_with(['/', '*', '{', '[', '?']) {
                let hint = if key == "exe" { "**/" } else { "/" };
                let span = names.as_ref().map_or(0..0, Spanned::span);
                return never(
                    span,
                    format!(
                        "{key} is a whole path, so {:?} never matches; did you mean \"{hint}{}\"?",
                        name.text, name.text
                    ),
                );
            }
        }
    }
    let name = raw.name.into_inner();
    Ok(Rule {
        name,
        reason: raw.reason,
        decision: raw.decide,
        ports: raw.port.map(|many| many.0),
        transports: raw.transport.map(|many| many.0),
        statuses: raw.status.map(|many| many.0),
        events: raw.event.map(|many| many.into_inner().0),
        addresses: raw.address.map(|many| many.0),
        peers: raw.peer.map(|many| many.into_inner().0),
        exes: raw.exe.map(|many| many.into_inner().0),
        users: raw.user.map(|many| many.0),
        units: raw.unit.map(|many| many.0),
        container: raw.container,
        cgroups: raw.cgroup.map(|many| many.into_inner().0),
        namespaces: raw.netns.map(|many| many.0),
    })
}

/// Adds to serde's word on an unknown key or variant which one was probably meant.
fn suggest(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    match quoted.split_first() {
        Some((text, known)) if is_unknown && !known.is_empty() => {
            let what = if message.starts_with("unknown field") {
                "key"
            } else {
                "value"
            };
            unknown(what, text, known)
        }
        _ => message.replace('`', "\""),
    }
}
