//! What is compared of an alert.

#![forbid(unsafe_code)]

use std::{fmt, net::IpAddr};

use serde_json::Value;

use super::Expected;

/// Compares the events of each socket; the order among sockets is not defined.
pub(super) fn compare(expected: &[Expected], alerts: &[Value]) -> Result<(), String> {
    let mut observed: Vec<Observed> = alerts.iter().map(Observed::of_alert).collect();
    if expected.iter().any(Expected::has_unknown_end) {
        for alert in &mut observed {
            alert.ended_by = None;
        }
    }
    let wanted: Vec<Observed> = expected.iter().map(Observed::of_expected).collect();
    let (observed, wanted) = (by_socket(&observed), by_socket(&wanted));
    if observed == wanted {
        return Ok(());
    }
    Err(format!(
        "expected [{}], got [{}]",
        list(&wanted),
        list(&observed)
    ))
}

pub(super) fn list(sockets: &[Vec<Observed>]) -> String {
    let sockets: Vec<String> = sockets
        .iter()
        .map(|events| {
            let events: Vec<String> = events.iter().map(ToString::to_string).collect();
            events.join(", ")
        })
        .collect();
    sockets.join("; ")
}

/// The compared part of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    socket: Option<u64>,
    event: String,
    transport: String,
    local: String,
    peer: Option<String>,
    pid: Option<u64>,
    outcome: Option<String>,
    /// Direction, bytes in and bytes out.
    session: Option<String>,
    ended_by: Option<String>,
    device: Option<String>,
}

impl Observed {
    pub(super) fn of_alert(alert: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let at = |address: &Value, port: &Value| format!("{} {port}", text(address));
        let (peer, session) = (&alert["peer"], &alert["session"]);
        Self {
            socket: alert["socket"]["cookie"].as_u64(),
            event: text(&alert["event"]),
            transport: text(&alert["transport"]),
            // A message of the monitor's has no place: what it says is of interest.
            local: match alert["detail"].as_str() {
                Some(detail) if alert["event"] == "health" => detail.to_owned(),
                _ => at(&alert["address"], &alert["port"]),
            },
            peer: (!peer.is_null()).then(|| at(&peer["address"], &peer["port"])),
            pid: alert["process"]["pid"].as_u64(),
            outcome: alert["outcome"].as_str().map(Into::into),
            session: session["direction"].as_str().map(|direction| {
                format!(
                    "{direction} bytes {} {}",
                    session["bytes_in"], session["bytes_out"]
                )
            }),
            ended_by: session["ended_by"].as_str().map(Into::into),
            device: alert["device"].as_str().map(Into::into),
        }
    }

    fn of_expected(expected: &Expected) -> Self {
        let at = |address: Option<IpAddr>, port: u16| {
            let address = address.map_or_else(|| "?".into(), |address| address.to_string());
            format!("{address} {port}")
        };
        let session = expected.session;
        Self {
            socket: expected.socket.map(u64::from),
            event: expected.event.name().into(),
            transport: expected.transport.name().into(),
            local: at(expected.address, expected.port),
            peer: expected.peer.map(|peer| at(Some(peer.ip()), peer.port())),
            pid: expected.pid.map(u64::from),
            outcome: expected.outcome.map(|outcome| outcome.name().into()),
            session: session.map(|session| {
                format!(
                    "{} bytes {} {}",
                    session.direction.name(),
                    session.bytes_in,
                    session.bytes_out
                )
            }),
            ended_by: session
                .and_then(|session| session.ended_by)
                .map(|end| end.name().into()),
            device: expected.device.clone(),
        }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.event, self.transport, self.local)?;
        if let Some(peer) = &self.peer {
            write!(f, " peer {peer}")?;
        }
        if let Some(outcome) = &self.outcome {
            write!(f, " {outcome}")?;
        }
        for text in [&self.session, &self.ended_by, &self.device]
            .into_iter()
            .flatten()
        {
            write!(f, " {text}")?;
        }
        match self.pid {
            Some(pid) => write!(f, " pid {pid}"),
            None => f.write_str(" without a process"),
        }
    }
}

/// The events of each socket in their order; the sockets in the order of their first event.
pub(super) fn by_socket(events: &[Observed]) -> Vec<Vec<Observed>> {
    let mut sockets: Vec<(Option<u64>, Vec<Observed>)> = Vec::new();
    for event in events {
        // Cookies and the scenario's numbers differ; only which events share one is compared.
        let anonymous = Observed {
            socket: None,
            ..event.clone()
        };
        match sockets
            .iter_mut()
            .find(|(socket, _)| *socket == event.socket)
        {
            Some((_, events)) => events.push(anonymous),
            None => sockets.push((event.socket, vec![anonymous])),
        }
    }
    sockets.into_iter().map(|(_, events)| events).collect()
}
