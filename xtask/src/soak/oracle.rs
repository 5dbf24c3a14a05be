//! What really happened, against what was reported.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// How long a report may take to arrive here; a reader that is blocked delays it.
const LATEST_NS: u64 = 15_000_000_000;

/// How much time around a disturbance is not judged.
const MARGIN_NS: u64 = 500_000_000;

/// Mistakes that are printed.
const SHOWN: usize = 20;

/// A socket that lasted.
struct Lasted {
    event: String,
    cookie: u64,
    pid: u64,
    opened: u64,
    closed: u64,
}

/// What was reported of a socket.
#[derive(Default)]
struct Reported {
    /// Kind and process id.
    events: Vec<(String, Option<u64>)>,
    last: u64,
}

#[derive(Default)]
pub(super) struct Oracle {
    lasted: VecDeque<Lasted>,
    reported: HashMap<u64, Reported>,
    /// Times in which nobody watched.
    disturbed: VecDeque<(u64, u64)>,
    pub(super) alerts: u64,
    /// Events that were reported or counted.
    pub(super) events: u64,
    /// Reports that found the ring full.
    pub(super) ring_full: u64,
    pub(super) judged: u64,
    /// Mistakes in what was reported.
    pub(super) wrong: u64,
    /// Sockets, or their ends, that were not reported.
    pub(super) lost: u64,
    pub(super) mistakes: Vec<String>,
}

impl Oracle {
    /// Takes a line of a worker.
    pub(super) fn happened(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [event, cookie, pid, opened, closed] = words.as_slice() else {
            anyhow::bail!("a worker printed {line}");
        };
        self.lasted.push_back(Lasted {
            event: (*event).to_owned(),
            cookie: cookie.parse()?,
            pid: pid.parse()?,
            opened: opened.parse()?,
            closed: closed.parse()?,
        });
        Ok(())
    }

    /// Takes a line of the monitor.
    pub(super) fn alert(&mut self, line: &str, now: u64) -> Result<()> {
        let alert: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        self.alerts += 1;
        let event = alert["event"].as_str().context("no event")?;
        if event == "loss" {
            self.ring_full += alert["lost"].as_u64().unwrap_or(0);
            self.disturb(now.saturating_sub(LATEST_NS), now + 2_000_000_000);
        }
        self.events += match alert["summary"]["counts"].as_object() {
            Some(counts) => counts.values().filter_map(Value::as_u64).sum(),
            None => u64::from(alert["socket"]["cookie"].is_u64()),
        };
        if let Some(cookie) = alert["socket"]["cookie"].as_u64() {
            let reported = self.reported.entry(cookie).or_default();
            let pid = alert["process"]["pid"].as_u64();
            reported.events.push((event.to_owned(), pid));
            reported.last = now;
        }
        Ok(())
    }

    /// Notes that between these times something was not watched.
    pub(super) fn disturb(&mut self, from: u64, to: u64) {
        let from = from.saturating_sub(MARGIN_NS);
        self.disturbed.push_back((from, to + MARGIN_NS));
    }

    /// Judges the sockets of which nothing more will come.
    pub(super) fn judge(&mut self, now: u64) {
        while let Some(one) = self.lasted.pop_front_if(|one| one.closed + LATEST_NS < now) {
            let is_disturbed =
                |window: &&(u64, u64)| one.opened < window.1 && one.closed > window.0;
            let is_strict = !self.disturbed.iter().any(|window| is_disturbed(&window));
            let events = self.reported.remove(&one.cookie).unwrap_or_default().events;
            self.judged += 1;
            if let Some((event, pid)) = events
                .iter()
                .find(|(_, pid)| pid.is_some_and(|pid| pid != one.pid))
            {
                self.wrong += 1;
                self.mistake(&one, &format!("{event} by {pid:?}"));
            }
            for kind in [one.event.as_str(), "close"]
                .into_iter()
                .filter(|_| is_strict)
            {
                let its = events.iter().filter(|(event, _)| event == kind);
                match its.clone().count() {
                    0 => self.lost += 1,
                    1 if its.clone().all(|(_, pid)| pid.is_some()) => continue,
                    _ => self.wrong += 1,
                }
                self.mistake(&one, &format!("{kind} in {events:?}"));
            }
        }
        // What came and went, and what is no longer judged.
        let old = now.saturating_sub(8 * LATEST_NS);
        self.reported.retain(|_, reported| reported.last > old);
        self.disturbed.retain(|window| window.1 > old);
    }

    fn mistake(&mut self, one: &Lasted, what: &str) {
        if self.mistakes.len() < SHOWN {
            let (cookie, pid, event) = (one.cookie, one.pid, &one.event);
            self.mistakes
                .push(format!("socket {cookie} ({event} by {pid}): {what}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn each_kind_of_mistake_is_found() {
        let alert = |event, pid: &str| {
            format!(r#"{{"event":"{event}","socket":{{"cookie":5}},"process":{{"pid":{pid}}}}}"#)
        };
        let (bind, close) = (alert("bind", "7"), alert("close", "7"));
        // Alerts, whether nobody watched for a moment, and how many are wrong and lost.
        let cases = [
            (vec![&bind, &close], false, (0, 0)),
            (vec![&bind], false, (0, 1)),
            (vec![], false, (0, 2)),
            (vec![], true, (0, 0)),
            (vec![&bind, &bind, &close], false, (1, 0)),
        ];
        let (other, nobody) = (alert("close", "8"), alert("close", "null"));
        let others = [
            (vec![&bind, &other], false, (1, 0)),
            (vec![&bind, &other], true, (1, 0)),
            (vec![&bind, &nobody], false, (1, 0)),
        ];
        for (alerts, is_disturbed, expected) in cases.into_iter().chain(others) {
            let mut oracle = Oracle::default();
            let (opened, closed) = (20 * SECOND, 21 * SECOND);
            oracle
                .happened(&format!("bind 5 7 {opened} {closed}"))
                .unwrap();
            for alert in &alerts {
                oracle.alert(alert, closed).unwrap();
            }
            if is_disturbed {
                oracle.disturb(closed, closed);
            }
            oracle.judge(closed + 20 * SECOND);
            assert_eq!((oracle.wrong, oracle.lost), expected, "{alerts:?}");
            assert_eq!(oracle.judged, 1);
        }
    }
}
