//! `portwatch explain-alert`: which rule decides on an alert, and why.

use std::{
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read},
};

use anyhow::Result;
use serde_json::Value;

use super::InputError;
use super::{
    args::{self, ConfigArgs},
    write,
};
use crate::{
    config::Overrides,
    model::{EventKind, Printable, Severity, Transport},
    policy::{Claims, Decision, Facts, Policy, default_severity},
    registry::Status,
};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Writes a line for each alert on stdin.
///
/// # Errors
///
/// [`ConfigError`](crate::config::ConfigError); [`InputError`] with the line, for what is not an
/// alert about a socket.
pub fn run(args: Args, out: &mut impl io::Write) -> Result<()> {
    let config = args::load(&args.config.source(Overrides::default()))?;
    let text = explain_alerts(&config.policy, io::stdin().lock())?;
    Ok(write(&text, out)?)
}

/// The lines for the alerts in `input`, which has one JSON object per line.
pub(crate) fn explain_alerts(policy: &Policy, input: impl Read) -> Result<String> {
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
                "not an alert about a socket: needs event, port, transport and registry.status"
                    .into(),
            )
        })?;
        writeln!(text, "{}", explain(policy, &facts, &alert))?;
    }
    Ok(text)
}

fn explain(policy: &Policy, facts: &Facts<'_>, alert: &Value) -> String {
    let default = match (alert["rule"].is_null(), alert["severity"].as_str()) {
        (true, Some("critical")) => Severity::Critical,
        _ => match (facts.event, facts.transport) {
            (Some(event), Some(transport)) => default_severity(event, transport, false),
            _ => Severity::Warning,
        },
    };
    let verdict = policy.decide(facts, default);
    let Some(rule) = verdict.rule else {
        return format!("no rule matches: {} by default", default.name());
    };
    let index = policy.rules().iter().position(|one| one.name == rule.name);
    let place = index.map_or(0, |index| index + 1);
    let name = Printable::from(&*rule.name);
    let reason = Printable::from(rule.reason.as_deref().unwrap_or("no reason given"));
    let decision = match rule.decision {
        Decision::Deny if facts.event == Some(EventKind::Bind) => "deny: the bind is denied".into(),
        Decision::Deny => format!("deny, which applies to binds only: {}", default.name()),
        decision => decision.name().to_owned(),
    };
    format!("rule {place}, \"{name}\", decides {decision} ({reason})")
}

/// The facts in an alert's JSON; None when it is not about a socket.
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
        uid: process["uid"]
            .as_u64()
            .and_then(|uid| u32::try_from(uid).ok()),
        netns: alert["socket"]["netns"].as_u64(),
        host_netns: alert["socket"]["host_netns"].as_bool(),
        device: alert["device"].as_str(),
        ..facts_of(process)
    })
}

/// The facts in a process's JSON. An alert of a version before `verified` has claims only.
fn facts_of(process: &Value) -> Facts<'_> {
    let verified = &process["verified"];
    let claims = Claims {
        exe: process["exe"].as_str(),
        unit: process["unit"].as_str(),
        container: process["cgroup"]
            .is_string()
            .then(|| process["container"].is_object()),
        cgroup: process["cgroup"].as_str(),
    };
    Facts {
        exe: claims.exe.filter(|_| verified["exe"].is_string()),
        unit: verified["unit"]["name"].as_str(),
        container: match verified["container"].is_object() {
            true => Some(true),
            false => claims.container.filter(|claimed| !claimed),
        },
        cgroup: verified["cgroup"].as_str(),
        claims,
        ..Facts::default()
    }
}
