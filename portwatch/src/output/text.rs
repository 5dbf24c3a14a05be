//! One readable line: what happened where, the registry's entry, who, and the rest as key=value.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::SocketAddr,
};

use super::Format;
use crate::{
    alert::{Alert, SummaryInfo},
    model::{EventKind, Origin, Severity},
    process::Process,
};

pub(super) struct Text {
    pub(super) colour: bool,
}

impl Format for Text {
    fn write(&self, alert: &Alert, line: &mut Vec<u8>) {
        let mut text = String::with_capacity(320);
        // Writing to a String does not fail.
        let _ = self.compose(alert, &mut text);
        text.push('\n');
        line.extend_from_slice(text.as_bytes());
    }
}

impl Text {
    fn compose(&self, alert: &Alert, text: &mut String) -> fmt::Result {
        write!(text, "{:.6} ", alert.time)?;
        let (on, off) = if self.colour {
            (colour(alert.severity), RESET)
        } else {
            ("", "")
        };
        write!(
            text,
            "{on}{:<8}{off} {:<7}",
            alert.severity.name(),
            alert.event.name()
        )?;
        if let Some(lost) = alert.lost {
            write!(
                text,
                " {lost} events lost: ring buffer full (see --ring-size)"
            )?;
        }
        if let Some(summary) = &alert.summary {
            compose_summary(summary, text)?;
        }
        if let Some(detail) = &alert.detail {
            write!(text, " {}", quoted_detail(detail))?;
        }
        if let (Some(transport), Some(port)) = (alert.transport, alert.port) {
            write!(text, " {} ", transport.name())?;
            match alert.address {
                Some(address) => write!(text, "{}", SocketAddr::new(address, port))?,
                None => write!(text, "port {port}")?,
            }
        }
        if let Some(peer) = alert.peer {
            let arrow = if alert.event == EventKind::Connect {
                "->"
            } else {
                "<-"
            };
            write!(
                text,
                " {arrow} {}",
                SocketAddr::new(peer.address, peer.port)
            )?;
        }
        if let Some(registry) = &alert.registry {
            write!(text, " {registry}")?;
        }
        match &alert.process {
            // The most of a line, and the same on many.
            Some(process) => text.push_str(process.text.get_or_make(|| {
                let mut text = String::new();
                let _ = compose_process(process, &mut text);
                text
            })),
            None if alert.socket.kernel == Some(true) => text.push_str(" process=kernel"),
            None if alert.port.is_some() && alert.summary.is_none() => {
                text.push_str(" process=unknown")
            }
            None => {}
        }
        compose_holders(alert, text)?;
        if let Some(rule) = &alert.rule {
            write!(text, " rule={}", quoted(&rule.name))?;
            if rule.dry_run {
                text.push_str(" dry_run=true");
            }
            if let Some(reason) = &rule.reason {
                write!(text, " reason={}", quoted(reason))?;
            }
        }
        if let Some(accepts) = &alert.accepts {
            write!(text, " accepts={} peers={}", accepts.count, accepts.peers)?;
        }
        if alert.origin == Origin::Snapshot {
            text.push_str(" origin=snapshot");
        }
        if let Some(netns) = alert.socket.netns {
            write!(text, " netns={netns}")?;
            if alert.socket.host_netns == Some(true) {
                text.push_str(",host");
            }
        }
        if let Some(cookie) = alert.socket.cookie {
            write!(text, " socket={cookie}")?;
        }
        Ok(())
    }
}

fn compose_process(process: &Process, text: &mut String) -> fmt::Result {
    write!(text, " {}[{}]", quoted(&process.comm), process.pid)?;
    match &process.user {
        Some(user) => write!(text, " user={}", quoted(user))?,
        None => write!(text, " uid={}", process.uid)?,
    }
    if let Some(ppid) = process.ppid.filter(|_| process.ancestors.is_empty()) {
        write!(text, " ppid={ppid}")?;
    }
    if let Some(capabilities) = &process.capabilities {
        write!(text, " capabilities={}", capabilities.join(","))?;
    }
    if let Some(exe) = &process.exe {
        write!(text, " exe={}", quoted(exe))?;
    }
    if !process.exe_flags.is_empty() {
        let flags: Vec<&str> = process.exe_flags.iter().map(|flag| flag.name()).collect();
        write!(text, " exe_flags={}", flags.join(","))?;
    }
    if let Some(script) = &process.script {
        write!(text, " script={}", quoted(script))?;
    }
    if let Some(cmdline) = &process.cmdline {
        let words: Vec<Cow<'_, str>> = cmdline.iter().map(|word| quoted(word)).collect();
        write!(text, " cmdline={}", quoted(&words.join(" ")))?;
    }
    match (&process.unit, &process.cgroup) {
        (Some(unit), _) => write!(text, " unit={}", quoted(unit))?,
        (None, Some(cgroup)) => write!(text, " cgroup={}", quoted(cgroup))?,
        (None, None) => {}
    }
    if let Some(container) = &process.container {
        write!(text, " container={}", quoted(&container.id))?;
    }
    if !process.ancestors.is_empty() {
        let chain: Vec<String> = process
            .ancestors
            .iter()
            .map(|one| format!("{}[{}]", quoted(&one.comm), one.pid))
            .collect();
        // Each name on its own, then all: no name can look like two.
        write!(text, " ancestors={}", quoted(&chain.join(" < ")))?;
    }
    Ok(())
}

/// What happened often, how often and where.
fn compose_summary(summary: &SummaryInfo, text: &mut String) -> fmt::Result {
    let counts: Vec<String> = summary
        .counts
        .iter()
        .map(|(event, count)| format!("{count} {event}"))
        .collect();
    write!(text, " {} since {:.6}", counts.join(", "), summary.since)?;
    let places = |places: &BTreeMap<&str, String>| -> String {
        let places = places
            .iter()
            .map(|(transport, ports)| format!("{transport} {ports}"));
        places.collect::<Vec<_>>().join(" ")
    };
    write!(text, " on {}", places(&summary.ports))?;
    match summary.held.is_empty() {
        true => text.push_str("; none open"),
        false => write!(text, "; open: {}", places(&summary.held))?,
    }
    if summary.processes.len() > 1 {
        text.push_str("; by");
        for one in &summary.processes {
            write!(text, " {}[{}]={}", quoted(&one.comm), one.pid, one.events)?;
        }
    }
    text.push(';');
    Ok(())
}

/// The holders, when they are others than the process that is named.
fn compose_holders(alert: &Alert, text: &mut String) -> fmt::Result {
    let named = alert.process.as_ref().map(|process| process.pid);
    if alert.holders.iter().all(|holder| Some(holder.pid) == named) {
        return Ok(());
    }
    let holders: Vec<String> = alert
        .holders
        .iter()
        .map(|holder| format!("{}[{}]", quoted(&holder.comm), holder.pid))
        .collect();
    write!(text, " holders={}", quoted(&holders.join(" ")))
}

/// As a shell would want it, so that no name can look like another field.
fn quoted(text: &str) -> Cow<'_, str> {
    shlex::try_quote(text).unwrap_or(Cow::Borrowed(text))
}

/// A message as it is, as long as it cannot be taken for fields.
fn quoted_detail(text: &str) -> Cow<'_, str> {
    if text.contains(['=', '\'', '"', '\\']) {
        quoted(text)
    } else {
        Cow::Borrowed(text)
    }
}

const RESET: &str = "\x1b[0m";

const fn colour(severity: Severity) -> &'static str {
    match severity {
        Severity::Notice => "\x1b[36m",
        Severity::Warning => "\x1b[33m",
        Severity::Critical => "\x1b[1;31m",
    }
}
