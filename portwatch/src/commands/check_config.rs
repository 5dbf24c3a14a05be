//! `portwatch check-config` and `portwatch explain-alert`: the rules, tried out.

use std::{
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use anyhow::Result;
use serde_json::Value;

use crate::{
    exit::InputError,
    model::{EventKind, Severity, Transport},
    policy::{Decision, Facts, Policy, severity},
    registry::{Registry, Status},
};

/// Says that the file can be used, and what it comes to.
///
/// # Errors
///
/// [`ConfigError`](crate::policy::ConfigError) with the place.
pub fn check_config(path: &Path, registry: &Registry) -> Result<String> {
    let policy = Policy::read(path)?;
    let mut text = format!("{}: {} rules\n", path.display(), policy.rules.len());
    for rule in &policy.rules {
        let reason = rule.reason.as_deref().unwrap_or("no reason given");
        writeln!(
            text,
            "  {:<8} {}: {reason}",
            rule.decision.name(),
            rule.name
        )?;
    }
    let count = |transport| policy.watched(registry, &[transport]).count();
    let [tcp, udp] = [Transport::Tcp, Transport::Udp].map(count);
    writeln!(text, "{tcp} tcp and {udp} udp ports are watched")?;
    if policy.denies() {
        let refusals = policy.refusals(registry);
        writeln!(
            text,
            "binds are refused by {} rules of the kernel side, looked at on {} ports",
            refusals.rules.len(),
            refusals.ports.len(),
        )?;
    }
    Ok(text)
}

/// Says of each alert on `input`, one JSON object a line, which rule decides on it.
///
/// # Errors
///
/// [`InputError`] with the line, for what is no alert.
pub fn explain_alert(policy: &Policy, input: impl Read) -> Result<String> {
    let mut text = String::new();
    for (number, line) in (1..).zip(BufReader::new(input).lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let problem = |problem: String| InputError(format!("stdin:{number}: {problem}"));
        let alert: Value =
            serde_json::from_str(&line).map_err(|error| problem(error.to_string()))?;
        let facts = facts(&alert).ok_or_else(|| {
            problem(
                "no alert about a socket: event, port, transport and registry.status must be there"
                    .into(),
            )
        })?;
        writeln!(text, "{}", explain(policy, &facts, &alert))?;
    }
    Ok(text)
}

fn explain(policy: &Policy, facts: &Facts<'_>, alert: &Value) -> String {
    let by_default = match (alert["rule"].is_null(), alert["severity"].as_str()) {
        (true, Some("critical")) => Severity::Critical,
        _ => match (facts.event, facts.transport) {
            (Some(event), Some(transport)) => severity(event, transport, false),
            _ => Severity::Warning,
        },
    };
    let verdict = policy.decide(facts, by_default);
    let Some(rule) = verdict.rule else {
        return format!("no rule matches: {} by default", by_default.name());
    };
    let index = policy.rules.iter().position(|one| one.name == rule.name);
    let place = index.map_or(0, |index| index + 1);
    let reason = rule.reason.as_deref().unwrap_or("no reason given");
    let what = match rule.decision {
        Decision::Deny if facts.event == Some(EventKind::Bind) => {
            "deny: the bind is refused".into()
        }
        Decision::Deny => format!("deny, which is about binds: {}", by_default.name()),
        decision => decision.name().to_owned(),
    };
    format!("rule {place}, {:?}, decides {what} ({reason})", rule.name)
}

/// What an alert in its JSON form says; None when it is about no socket.
fn facts(alert: &Value) -> Option<Facts<'_>> {
    let process = &alert["process"];
    let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    Some(Facts {
        event: Some(alert["event"].as_str()?.parse::<EventKind>().ok()?),
        port: Some(u16::try_from(alert["port"].as_u64()?).ok()?),
        transport: Some(Transport::from_name(alert["transport"].as_str()?)?),
        status: Some(
            alert["registry"]["status"]
                .as_str()?
                .parse::<Status>()
                .ok()?,
        ),
        address: address(&alert["address"]),
        peer: address(&alert["peer"]["address"]),
        exe: process["exe"].as_str(),
        uid: process["uid"]
            .as_u64()
            .and_then(|uid| u32::try_from(uid).ok()),
        unit: process["unit"].as_str(),
        container: process
            .is_object()
            .then(|| process["container"].is_object()),
        cgroup: process["cgroup"].as_str(),
        netns: alert["socket"]["netns"].as_u64(),
        host_netns: alert["socket"]["host_netns"].as_bool(),
    })
}

/// Writes a command's answer to stdout.
///
/// # Errors
///
/// [`StdoutGone`](crate::output::StdoutGone).
pub fn print(text: &str, out: &mut impl io::Write) -> Result<()> {
    Ok(out
        .write_all(text.as_bytes())
        .map_err(crate::output::StdoutGone::Io)?)
}
