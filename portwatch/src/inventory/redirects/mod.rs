//! Packet filter rules that take traffic for a watched port elsewhere. The socket that receives it
//! is on another port, so no hook shows it: `doctor` does.
#![forbid(unsafe_code)]

mod iptables;
mod nft;
mod rules;

use std::{
    collections::HashSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use crate::model::{PortKey, Printable, Transport};

/// Where distributions keep administrators' programs.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// How long a program may take to show its rules.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of rules that are read.
const LIMIT: u64 = 4 << 20;

/// Redirects that are shown of each kind.
const SHOWN: usize = 8;

/// Rules that redirect watched ports.
#[derive(Debug, Default, PartialEq, Eq)]
struct Redirects {
    all: Vec<Redirect>,
    /// Whether there are more rules than are followed.
    is_partial: bool,
}

/// A rule that redirects watched ports.
#[derive(Debug, PartialEq, Eq)]
struct Redirect {
    /// Where the kernel enters the rules.
    chain: String,
    by: &'static str,
    ports: Vec<PortKey>,
}

/// What one packet filter does with the watched ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectCheck {
    /// The packet filter.
    pub name: &'static str,
    /// `Ok`: its rules redirect no watched port. `Err`: they may redirect these, or could not be
    /// read.
    pub result: Result<String, String>,
}

/// What the packet filters do with the watched ports in the network namespace of this process. Rules
/// are judged by transport and port: one that applies to some addresses only counts too, also where
/// an earlier rule accepts.
#[must_use]
pub fn check(watched: &HashSet<(u16, Transport)>) -> Vec<RedirectCheck> {
    let mut ports: Vec<PortKey> = watched
        .iter()
        .map(|(port, transport)| PortKey {
            transport: *transport,
            port: *port,
        })
        .collect();
    ports.sort_unstable();
    let nft = || {
        let rules = output("nft", &["-j", "list", "ruleset"])?;
        let chains = nft::parse(&rules).map_err(|error| format!("not checked: nft: {error}"))?;
        Ok(chains.of_ports(&ports))
    };
    let iptables = |program: &'static str, shown| {
        let rules = output(program, &["-t", "nat"])?;
        Ok(iptables::parse(&String::from_utf8_lossy(&rules), shown).of_ports(&ports))
    };
    let check = |name, redirects: Result<Redirects, String>| RedirectCheck {
        name,
        result: redirects.and_then(describe),
    };
    vec![
        check("redirects by nftables", nft()),
        check(
            "redirects by iptables",
            iptables("iptables-save", "iptables"),
        ),
        check(
            "redirects by ip6tables",
            iptables("ip6tables-save", "ip6tables"),
        ),
        check("redirects by IPVS", virtual_servers(&ports)),
    ]
}

fn describe(redirects: Redirects) -> Result<String, String> {
    let Redirects { all, is_partial } = redirects;
    let partial = if is_partial {
        "; not checked: further rules"
    } else {
        ""
    };
    if all.is_empty() {
        let text = format!("none of a watched port{partial}");
        return if is_partial { Err(text) } else { Ok(text) };
    }
    let shown = all.iter().take(SHOWN).map(|one| {
        let chain = Printable::from(one.chain.as_str());
        format!("{chain}: {} of {}", one.by, port_ranges(&one.ports))
    });
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if all.len() > SHOWN {
        text.push_str(&format!("; {} more", all.len() - SHOWN));
    }
    Err(format!(
        "{text}: sockets that receive this traffic are on other ports and are not reported{partial}"
    ))
}

/// Ascending ports by transport, `tcp 976,980-985`.
fn port_ranges(ports: &[PortKey]) -> String {
    let mut text = Vec::new();
    for transport in Transport::ALL {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for key in ports.iter().filter(|key| key.transport == transport) {
            match runs.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(key.port) => *last = key.port,
                _ => runs.push((key.port, key.port)),
            }
        }
        let total = runs.len();
        let runs = runs.into_iter().take(SHOWN).map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        });
        let mut runs: Vec<String> = runs.collect();
        if total > SHOWN {
            runs.push("...".into());
        }
        if !runs.is_empty() {
            text.push(format!("{} {}", transport.name(), runs.join(",")));
        }
    }
    text.join(" ")
}

/// IPVS takes packets that were delivered to this host's addresses, before any socket
/// (`ip_vs_info_seq_show` in net/netfilter/ipvs/ip_vs_ctl.c, Linux 6.18).
fn virtual_servers(ports: &[PortKey]) -> Result<Redirects, String> {
    let mut text = String::new();
    match fs::File::open("/proc/net/ip_vs") {
        // Not in this kernel, or not loaded.
        Err(_) => return Ok(Redirects::default()),
        Ok(file) => file
            .take(LIMIT)
            .read_to_string(&mut text)
            .map_err(|error| format!("not checked: /proc/net/ip_vs: {error}"))?,
    };
    Ok(Redirects {
        all: parse_ipvs(&text, ports),
        is_partial: text.len() as u64 == LIMIT,
    })
}

/// `TCP  C0A80001:03D0 rr`, or by the packets' mark, which says nothing of ports: `FWM  00000001 rr`.
fn parse_ipvs(text: &str, watched: &[PortKey]) -> Vec<Redirect> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let transport = words.next()?;
        let ports = if transport == "FWM" {
            watched.to_vec()
        } else {
            let transport = Transport::from_name(transport)?;
            let (_, port) = words.next()?.rsplit_once(':')?;
            let port = u16::from_str_radix(port, 16).ok()?;
            let key = PortKey { transport, port };
            // Port 0 stands for all of a persistent service.
            let is_it = |one: &&PortKey| **one == key || port == 0 && one.transport == transport;
            watched.iter().filter(is_it).copied().collect()
        };
        (!ports.is_empty()).then(|| Redirect {
            chain: "/proc/net/ip_vs".into(),
            by: "virtual server",
            ports,
        })
    };
    text.lines().filter_map(server).collect()
}

/// What a program writes to stdout.
///
/// # Errors
///
/// Why there is nothing to check.
fn output(program: &str, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let paths = DIRECTORIES.map(|directory| Path::new(directory).join(program));
    let path = paths.into_iter().find(|path| path.is_file());
    let Some(path) = path else {
        return Err(format!("not checked: {program} is not installed"));
    };
    run(&path, arguments, TIMEOUT).map_err(|error| format!("not checked: {program}: {error}"))
}

fn run(path: &PathBuf, arguments: &[&str], timeout: Duration) -> Result<Vec<u8>, String> {
    let until = Instant::now() + timeout;
    let mut child = Command::new(path)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let Some(stdout) = child.stdout.take() else {
        return Err("no stdout".into());
    };
    let (sender, bytes) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.take(LIMIT + 1).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes));
    });
    let bytes = bytes.recv_timeout(timeout);
    let status = wait(&mut child, until);
    let bytes = bytes.map_err(|_| format!("no answer within {} s", timeout.as_secs()))?;
    let bytes = bytes.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LIMIT {
        return Err(format!("more than {} MiB of rules", LIMIT >> 20));
    }
    match status {
        Some(status) if status.success() => Ok(bytes),
        Some(status) => Err(status.to_string()),
        None => Err(format!("it did not end within {} s", timeout.as_secs())),
    }
}

/// Waits for a program that has written all that is wanted; kills it when the time is over.
fn wait(child: &mut Child, until: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
