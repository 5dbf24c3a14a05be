//! What alerts quote of the registry.

use std::fmt;

use jiff::civil::Date;
use serde::Serialize;

use super::{Basis, Registry, Status};
use crate::{
    model::{PortKey, Printable},
    util::quote,
};

/// Bytes in JSON of a service's name: RFC 6335 section 5.1 allows 15, a file can have any.
const MAX_SERVICE: usize = 128;

/// What alerts quote of the registry's entry for a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegistryInfo {
    /// The status.
    pub status: Status,
    /// The ports of the registry's row, `954-988`, when that names more than one.
    pub range: Option<String>,
    /// The first service name, if there is one.
    pub service: Option<Printable>,
    /// Whether a row or a rule says so.
    pub basis: Basis,
    /// The registry's date.
    pub as_of: Option<Date>,
}

impl Registry {
    /// What alerts quote for a system port; None from 1024 up.
    #[must_use]
    pub fn info(&self, port: PortKey) -> Option<RegistryInfo> {
        let entry = self.entry(port.port, port.transport)?;
        Some(RegistryInfo {
            status: entry.status,
            range: entry.range.map(|(first, last)| format!("{first}-{last}")),
            service: entry
                .services
                .first()
                .map(|service| service.clone().shortened(MAX_SERVICE)),
            basis: entry.basis,
            as_of: self.as_of(),
        })
    }
}

impl fmt::Display for RegistryInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.name())?;
        let mut details: Vec<String> = Vec::new();
        // Quoted, so that no name looks like another field of the text line.
        let service = self.service.as_ref().map(|name| quote(name));
        details.extend(service.map(String::from));
        details.extend(self.range.clone());
        if self.basis == Basis::OtherTransport {
            details.push("RFC 6335 7.2".into());
        }
        details.extend(self.as_of.map(|date| format!("IANA {date}")));
        if details.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", details.join(", "))
    }
}
