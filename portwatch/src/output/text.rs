//! One readable line: what happened where, the registry's entry, who, and the rest as key=value.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::SocketAddr,
};

use super::Format;
use crate::{
    alert::{Alert, SessionInfo, SummaryInfo},
    model::{Direction, EventKind, Origin, Printable, Severity},
    process::Process,
    tracker::Holder,
    util::quote,
};

/// Bytes of quoted text in a line, by what it is: a line takes at most 16 KiB.
const NAME: usize = 256;
const PATH: usize = 1536;
const CMDLINE: usize = 3072;
const LIST: usize = 1536;
const REASON: usize = 768;

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
            match (alert.event, alert.direction) {
                (EventKind::Connect, None) => "connection",
                (event, _) => event.name(),
            }
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
        if let (Some(transport), Some(local)) = (alert.transport, alert.local()) {
            write!(text, " {} {}", transport.name(), keyless(&local))?;
        }
        if let Some(peer) = alert.peer {
            let arrow = match alert.direction {
                Some(Direction::Out) => "->",
                Some(Direction::In) => "<-",
                None => "<->",
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
        if alert.event == EventKind::Handover {
            text.push_str(" now held by");
        }
        match &alert.process {
            // The most of a line, and the same on many.
            Some(process) => text.push_str(&process.text(|| {
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
            write!(text, " rule={}", quoted(&rule.name, NAME))?;
            if rule.dry_run {
                text.push_str(" dry_run=true");
            }
            if let Some(reason) = &rule.reason {
                write!(text, " reason={}", quoted(reason, REASON))?;
            }
        }
        if let Some(accepts) = &alert.accepts {
            write!(text, " accepts={} peers={}", accepts.count, accepts.peers)?;
        }
        if let Some(received) = &alert.received {
            write!(
                text,
                " datagrams={} bytes={} peers={}",
                received.datagrams, received.bytes, received.peers
            )?;
            if received.others > 0 {
                write!(text, " others={}", received.others)?;
            }
        }
        if let Some(sessions) = &alert.sessions {
            write!(
                text,
                " sessions={} open={} bytes_in={} bytes_out={}",
                sessions.ended, sessions.open, sessions.bytes_in, sessions.bytes_out
            )?;
        }
        if let Some(session) = &alert.session {
            compose_session(session, text)?;
        }
        if let Some(outcome) = alert.outcome {
            write!(text, " outcome={}", outcome.name())?;
        }
        if alert.origin == Origin::Snapshot {
            text.push_str(" origin=snapshot");
        }
        if let Some(device) = &alert.device {
            write!(text, " device={}", quoted(device, NAME))?;
        }
        if let Some(v6only) = alert.v6only {
            write!(text, " v6only={v6only}")?;
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
    write!(text, " {}[{}]", keyless(&process.comm), process.pid)?;
    match &process.user {
        Some(user) => write!(text, " user={}", quoted(user, NAME))?,
        None => write!(text, " uid={}", process.uid)?,
    }
    if let Some(ppid) = process.ppid.filter(|_| process.ancestors.is_empty()) {
        write!(text, " ppid={ppid}")?;
    }
    if let Some(capabilities) = &process.capabilities {
        write!(text, " capabilities={}", capabilities.join(","))?;
    }
    if let Some(exe) = &process.exe {
        write!(text, " exe={}", quoted(exe, PATH))?;
    }
    if !process.exe_flags.is_empty() {
        let flags: Vec<&str> = process.exe_flags.iter().map(|flag| flag.name()).collect();
        write!(text, " exe_flags={}", flags.join(","))?;
    }
    if let Some(script) = &process.script {
        write!(text, " script={}", quoted(script, PATH))?;
    }
    if let Some(cmdline) = &process.cmdline {
        let words: Vec<Cow<'_, str>> = cmdline.iter().map(|word| quote(word)).collect();
        write!(text, " cmdline={}", quoted(&words.join(" "), CMDLINE))?;
    }
    match (&process.unit, &process.cgroup) {
        (Some(unit), _) => write!(text, " unit={}", quoted(unit, PATH))?,
        (None, Some(cgroup)) => write!(text, " cgroup={}", quoted(cgroup, PATH))?,
        (None, None) => {}
    }
    if let Some(container) = &process.container {
        write!(text, " container={}", quoted(&container.id, NAME))?;
    }
    // The path of a cgroup stands where there is no unit.
    let is_shown = |key: &&str| *key != "cgroup" || process.unit.is_none();
    let unverified = process.unverified();
    let unverified: Vec<&str> = unverified.into_iter().filter(is_shown).collect();
    if !unverified.is_empty() {
        write!(text, " unverified={}", unverified.join(","))?;
    }
    if !process.ancestors.is_empty() {
        let named = process.ancestors.iter();
        let mut chain: Vec<String> = named
            .map(|one| format!("{}[{}]", quote(&one.comm), one.pid))
            .collect();
        chain.extend(more(process.ancestors_omitted));
        // Each name on its own, then all: no name can look like two.
        write!(text, " ancestors={}", quoted(&chain.join(" < "), LIST))?;
    }
    Ok(())
}

/// How a connection went.
fn compose_session(session: &SessionInfo, text: &mut String) -> fmt::Result {
    write!(text, " direction={}", session.direction.name())?;
    if let Some(opened) = session.opened {
        write!(text, " opened={opened:.6}")?;
    }
    if let Some(duration) = session.duration_ms {
        write!(text, " duration_ms={duration}")?;
    }
    write!(
        text,
        " bytes_in={} bytes_out={}",
        session.bytes_in, session.bytes_out
    )?;
    if let Some(ended_by) = session.ended_by {
        write!(text, " ended_by={}", ended_by.name())?;
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
            write!(text, " {}[{}]={}", keyless(&one.comm), one.pid, one.events)?;
        }
    }
    if let (Some(bytes_in), Some(bytes_out)) = (summary.bytes_in, summary.bytes_out) {
        write!(text, "; bytes_in={bytes_in} bytes_out={bytes_out}")?;
    }
    text.push(';');
    Ok(())
}

/// The holders, when they are others than the process that is named.
fn compose_holders(alert: &Alert, text: &mut String) -> fmt::Result {
    let named = alert.process.as_ref().map(|process| process.pid);
    let is_named = |holder: &Holder| Some(holder.pid) == named;
    if alert.holders.iter().all(is_named) && alert.holders_omitted == 0 {
        return Ok(());
    }
    let named = alert.holders.iter();
    let mut holders: Vec<String> = named
        .map(|holder| format!("{}[{}]", quote(&holder.comm), holder.pid))
        .collect();
    holders.extend(more(alert.holders_omitted));
    write!(text, " holders={}", quoted(&holders.join(" "), LIST))
}

/// Stands for those that a list does not name.
fn more(omitted: u32) -> Option<String> {
    (omitted > 0).then(|| format!("...(+{omitted})"))
}

/// As a shell would want it, so that no name can look like another field. Quotes make text up to
/// four times as long: in at most `max` bytes, with a note of how many are cut.
fn quoted(text: &str, max: usize) -> Cow<'_, str> {
    let quoted = quote(text);
    if quoted.len() <= max {
        return quoted;
    }
    let mut keep = max;
    loop {
        let cut = quote(&Printable::limited(text.as_bytes(), keep)).into_owned();
        if cut.len() <= max || keep == 0 {
            return cut.into();
        }
        keep = (keep * max / cut.len()).min(keep - 1);
    }
}

/// A name that stands without a key: what has a `=` after a reader took the quotes off is a field.
fn keyless(name: &str) -> String {
    quoted(&name.replace('=', "\\u{3d}"), NAME).into_owned()
}

/// A message as it is, as long as it cannot be taken for fields.
fn quoted_detail(text: &str) -> Cow<'_, str> {
    if text.contains(['=', '\'', '"', '\\']) {
        quote(text)
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
