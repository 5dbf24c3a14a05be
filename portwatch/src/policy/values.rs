//! The values of conditions.

use std::{net::IpAddr, str::FromStr};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use ipnet::IpNet;

use super::coverage::PortSet;

/// A system port or a range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    pub(super) const fn matches(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    pub(super) fn insert_into(self, ports: &mut PortSet) {
        ports.insert(self.first, self.last);
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            let port: u32 = text
                .trim()
                .parse()
                .map_err(|_| format!("{text:?} is not a port; write 976, \"954-988\" or a list"))?;
            match u16::try_from(port) {
                Ok(0) => Err("no socket has port 0".to_owned()),
                Ok(port) if port < 1024 => Ok(port),
                _ => Err(format!(
                    "{port} is not a system port (1-1023), so this never matches"
                )),
            }
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!(
                "{text:?} is empty; did you mean \"{last}-{first}\"?"
            ));
        }
        Ok(Self { first, last })
    }
}

/// A class of local addresses, or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// 127.0.0.0/8 and ::1.
    Loopback,
    /// RFC 1918, RFC 4193 and link-local.
    Private,
    /// The wildcard: 0.0.0.0 and ::.
    Any,
    /// A network.
    In(IpNet),
}

impl Address {
    pub(super) fn matches(self, address: IpAddr) -> bool {
        match self {
            Self::Loopback => address.is_loopback(),
            Self::Private => match address {
                IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
            },
            Self::Any => address.is_unspecified(),
            Self::In(network) => network.contains(&address),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "loopback" => Ok(Self::Loopback),
            "private" => Ok(Self::Private),
            "any" => Ok(Self::Any),
            _ => text
                .parse()
                .map(|Network(network)| Self::In(network))
                .map_err(|_| {
                    format!("{text:?} is not loopback, private, any, an address or a network")
                }),
        }
    }
}

/// A network, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    pub(super) fn matches(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network: IpNet = text
            .parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| format!("{text:?} is not an address or a network like 10.0.0.0/8"))?;
        if network.trunc() != network {
            return Err(format!(
                "{text:?} has bits set after its prefix; did you mean \"{}\"?",
                network.trunc()
            ));
        }
        Ok(Self(network))
    }
}

/// A name or a glob pattern: `*` does not match `/`, `**` does.
#[derive(Clone, Debug)]
pub struct NamePattern {
    pub(super) text: String,
    /// None for a plain name.
    pattern: Option<GlobSet>,
}

/// Bytes of a name or pattern: `PATH_MAX` in include/uapi/linux/limits.h.
const MAX_NAME: usize = 4096;

/// How deep alternatives may be nested: each level nests the regular expression that it becomes.
const MAX_DEPTH: usize = 8;

impl NamePattern {
    pub(super) fn matches(&self, name: &str) -> bool {
        self.text == name
            || self
                .pattern
                .as_ref()
                .is_some_and(|pattern| pattern.is_match(name))
    }

    /// Whether it matches `path` or a parent of it.
    pub(super) fn matches_or_contains(&self, path: &str) -> bool {
        let mut path = path;
        loop {
            if self.matches(if path.is_empty() { "/" } else { path }) {
                return true;
            }
            match path.rsplit_once('/') {
                Some((parent, _)) if path != "/" => path = parent,
                _ => return false,
            }
        }
    }

    /// Whether it is a name, not a pattern.
    pub(super) const fn is_plain(&self) -> bool {
        self.pattern.is_none()
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty name never matches".into());
        }
        if text.len() > MAX_NAME {
            return Err(format!("a name has at most {MAX_NAME} bytes"));
        }
        let pattern = if text.contains(['*', '?', '[', '{', '}', '\\']) {
            Some(compile(text)?)
        } else {
            None
        };
        Ok(Self {
            text: text.into(),
            pattern,
        })
    }
}

/// Compiles a pattern. A set of one, since what is wrong with a single matcher is a panic.
fn compile(text: &str) -> Result<GlobSet, String> {
    let nested = text.chars().scan(0_usize, |depth, character| {
        match character {
            '{' => *depth += 1,
            '}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    if nested.max() > Some(MAX_DEPTH) {
        return Err(format!(
            "alternatives are nested more than {MAX_DEPTH} deep"
        ));
    }
    let problem = |error: globset::Error| format!("{text:?}: {}", error.kind());
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    let set = GlobSetBuilder::new().add(glob.map_err(problem)?).build();
    set.map_err(problem)
}

/// A user, given by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub(super) uid: u32,
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(uid) = text.parse() {
            return Ok(Self { uid });
        }
        match nix::unistd::User::from_name(text) {
            Ok(Some(user)) => Ok(Self {
                uid: user.uid.as_raw(),
            }),
            Ok(None) => Err(format!(
                "this host has no user {text:?}; a numeric uid is accepted too"
            )),
            Err(error) => Err(format!("looking up the user {text:?}: {error}")),
        }
    }
}

/// A network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netns {
    /// The host's.
    Host,
    /// Any but the host's.
    Other,
    /// The namespace with that inode.
    Inode(u64),
}

impl Netns {
    pub(super) const fn matches(self, inode: u64, is_host: bool) -> bool {
        match self {
            Self::Host => is_host,
            Self::Other => !is_host,
            Self::Inode(wanted) => wanted == inode,
        }
    }
}

impl FromStr for Netns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            "other" => Ok(Self::Other),
            _ => text
                .parse()
                .map(Self::Inode)
                .map_err(|_| format!("{text:?} is not host, other or an inode like 4026531840")),
        }
    }
}
