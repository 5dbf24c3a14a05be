//! How the values of keys are written.

use std::{fmt, marker::PhantomData, str::FromStr, time::Duration};

use jiff::SignedDuration;
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use crate::{
    model::{EventKind, Transport},
    registry::Status,
};

/// A duration: `60s`, `1 min`, `500 ms`.
pub(super) struct HumanDuration(pub Duration);

/// Values in one list.
const MAX_VALUES: usize = 1024;

/// The values that a number or a duration may have.
pub(super) struct Within<T> {
    pub min: T,
    pub max: T,
}

impl Within<Duration> {
    /// The value of `key`, or what is wrong with it.
    pub(super) fn check(&self, key: &str, value: Duration) -> Result<Duration, String> {
        if (self.min..=self.max).contains(&value) {
            return Ok(value);
        }
        let (min, max) = (self.min, self.max);
        Err(format!("{key} must be between {min:?} and {max:?}"))
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let duration: SignedDuration = text.parse().map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is not a duration; write \"60s\" or \"500ms\""
            ))
        })?;
        Duration::try_from(duration)
            .map(Self)
            .map_err(|_| de::Error::custom(format!("{text:?} is negative")))
    }
}

/// One value or a list of them, each a string or a number.
pub(super) struct OneOrMany<T>(pub Vec<T>);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for OneOrMany<T> {
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
                while let Some(OneOrMany(one)) = values.next_element::<OneOrMany<T>>()? {
                    all.extend(one);
                    if all.len() > MAX_VALUES {
                        return Err(de::Error::custom(format!(
                            "a list has at most {MAX_VALUES} values; use ranges or patterns"
                        )));
                    }
                }
                if all.is_empty() {
                    return Err(de::Error::custom(
                        "an empty list never matches; leave the key out",
                    ));
                }
                Ok(all)
            }
        }
        deserializer
            .deserialize_any(Values(PhantomData))
            .map(OneOrMany)
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

/// The message for an unknown name: with the nearest known one, if one is near, and all of them.
pub(super) fn unknown(what: &str, text: &str, known: &[&str]) -> String {
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
