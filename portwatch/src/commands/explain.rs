//! `portwatch explain`: a port's registry entry and its sockets on this host.

use std::{fmt::Write as _, io, str::FromStr};

use anyhow::{Context as _, Result};

use super::{args::RegistryArgs, peers, write};
use crate::{
    alert,
    inventory::{self, SocketEntry, State},
    linux::netns::inode_of,
    model::Transport,
    process::{Process, Processes},
    registry::{Entry, Registry},
    util::{parallel, quote},
};

/// A port, on one transport or on all: `976`, `443/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSpec {
    port: u16,
    transport: Option<Transport>,
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, transport) = match text.split_once('/') {
            Some((port, name)) => {
                let transport = Transport::from_name(name).ok_or_else(|| {
                    let names = Transport::ALL.map(Transport::name).join(", ");
                    format!("{name:?} is not one of {names}")
                })?;
                (port, Some(transport))
            }
            None => (text, None),
        };
        let port = port
            .parse()
            .map_err(|_| format!("{port:?} is not a port (0-65535)"))?;
        Ok(Self { port, transport })
    }
}

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port, with or without transport: 976, 443/udp
    #[arg(value_name = "PORT[/TRANSPORT]")]
    port: PortSpec,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Writes the registry entry, the sockets and the peers of open connections.
///
/// # Errors
///
/// When /proc cannot be read; those of the registry.
pub fn run(args: Args, out: &mut impl io::Write) -> Result<()> {
    explain(args.port, &args.registry.read()?, out)
}

/// Connected sockets that are shown one by one.
const MAX_CONNECTED: usize = 100;

fn explain(spec: PortSpec, registry: &Registry, out: &mut impl io::Write) -> Result<()> {
    let PortSpec { port, transport } = spec;
    let transports: Vec<Transport> = Transport::ALL
        .into_iter()
        .filter(|one| transport.is_none_or(|only| only == *one))
        .collect();
    let as_of = registry
        .as_of()
        .map_or_else(|| "of unknown date".into(), |date| date.to_string());
    let mut text = String::new();
    if registry.entry(port, Transport::Tcp).is_some() {
        writeln!(text, "Registry (IANA, {as_of}):")?;
    } else {
        writeln!(
            text,
            "Registry: {port} is not a system port (0-1023), so it is not watched"
        )?;
    }
    for transport in &transports {
        if let Some(entry) = registry.entry(port, *transport) {
            let name = format!("{port}/{}", transport.name());
            writeln!(text, "  {name:<12} {}", describe(entry, *transport))?;
        }
    }
    let mut sockets = inventory::read(port..=port, parallel::threads())
        .context("reading /proc")?
        .sockets;
    sockets.retain(|held| transports.contains(&held.transport));
    writeln!(text, "On this host now:")?;
    if sockets.is_empty() {
        writeln!(text, "  no socket on this port")?;
    }
    let here = inode_of(std::process::id());
    let mut names = Processes::patient();
    let mut connected = 0_usize;
    for held in &sockets {
        if matches!(held.state, State::Connected(_)) {
            connected += 1;
            if connected > MAX_CONNECTED {
                continue;
            }
        }
        write!(text, "  {}", socket(held))?;
        if Some(held.netns) != here {
            write!(text, " in network namespace {}", held.netns)?;
        }
        writeln!(text)?;
        if held.holders.is_empty() {
            writeln!(
                text,
                "      by the kernel, or by a process that this user cannot see"
            )?;
        }
        for holder in held
            .holders
            .iter()
            .filter_map(|holder| names.look_up(holder.pid))
        {
            writeln!(text, "      by {}", describe_holder(&holder))?;
        }
    }
    if let Some(more @ 1..) = connected.checked_sub(MAX_CONNECTED) {
        writeln!(text, "  {more} more connected sockets")?;
    }
    if transports.contains(&Transport::Tcp) {
        text.push_str(&peers::describe(port, here)?);
    }
    if !nix::unistd::geteuid().is_root() {
        writeln!(
            text,
            "  (only sockets that this user can see; run as root for all)"
        )?;
    }
    Ok(write(&text, out)?)
}

fn describe(entry: &Entry, transport: Transport) -> String {
    let mut text = String::from(entry.status.name());
    if !entry.services.is_empty() {
        let services: Vec<_> = entry.services.iter().map(|name| quote(name)).collect();
        text = format!("{text} to {}", services.join(", "));
    }
    text = match entry.range {
        Some((first, last)) => format!("{text} ({} {first}-{last})", entry.basis),
        None => format!("{text} ({})", entry.basis),
    };
    if transport == Transport::UdpLite {
        text.push_str("; UDP-Lite follows UDP, RFC 3828");
    }
    text
}

fn socket(held: &SocketEntry) -> String {
    let device = held.device.as_deref();
    let local = alert::local(held.local.ip(), held.local.port(), device);
    let mut text = format!("{} {}", held.transport.name(), quote(&local));
    match held.state {
        State::Listening => text.push_str(" listening"),
        State::Bound => text.push_str(" bound"),
        State::Connected(peer) => text.push_str(&format!(" connected with {peer}")),
    }
    if let Some(device) = device {
        text.push_str(&format!(" on {}", quote(device)));
    }
    match held.v6only {
        Some(true) => text.push_str(" (IPv6 only)"),
        Some(false) => text.push_str(" (and IPv4)"),
        None => {}
    }
    text
}

fn describe_holder(process: &Process) -> String {
    let mut text = format!("{}[{}]", quote(&process.comm), process.pid);
    match &process.user {
        Some(user) => text = format!("{text} user {}", quote(user)),
        None => text = format!("{text} uid {}", process.uid),
    }
    let unverified = process.unverified();
    let mark = |key, mark| match unverified.contains(&key) {
        true => mark,
        false => "",
    };
    if let Some(exe) = &process.exe {
        text = format!("{text}, {}{}", quote(exe), mark("exe", " (unverified)"));
    }
    if let Some(cmdline) = &process.cmdline {
        let words: Vec<_> = cmdline.iter().map(|word| quote(word)).collect();
        text = format!("{text}: {}", words.join(" "));
    }
    if let Some(unit) = &process.unit {
        text = format!(
            "{text} (unit {}{})",
            quote(unit),
            mark("unit", ", unverified")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_and_without_transport() {
        let spec = |port, transport| Ok(PortSpec { port, transport });
        assert_eq!("976".parse(), spec(976, None));
        assert_eq!("443/udp".parse(), spec(443, Some(Transport::Udp)));
        assert_eq!("443/UDPLite".parse(), spec(443, Some(Transport::UdpLite)));
        for bad in ["", "x", "70000", "976/", "976/icmp", "-1"] {
            assert!(bad.parse::<PortSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_registry_entry_and_the_holder_are_printed() {
        // From 1024 up, so that this needs no privilege and no other test uses it.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let registry = Registry::embedded().unwrap();
        let mut out = Vec::new();
        explain(
            PortSpec {
                port,
                transport: None,
            },
            &registry,
            &mut out,
        )
        .unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("not a system port"), "{text}");
        assert!(
            text.contains(&format!("tcp 127.0.0.1:{port} listening")),
            "{text}"
        );
        assert!(
            text.contains(&format!("[{}]", std::process::id())),
            "{text}"
        );

        let mut out = Vec::new();
        let spec = PortSpec {
            port: 716,
            transport: Some(Transport::Tcp),
        };
        explain(spec, &registry, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let rule = "716/tcp      reserved (no registry row; assigned or reserved on another transport, RFC 6335";
        assert!(text.contains(rule), "{text}");
    }
}
