//! The canary's rounds: what the BPF programs are to report of them, and whether they did and woke the
//! agent. A program can be attached and report nothing, or the agent can sleep while it does: nothing
//! else would show that.
#![forbid(unsafe_code)]

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Monitor, scheduler::Urgency};
use crate::{
    inventory::Scope,
    model::{DenyRules, Event, EventKind, Severity, Transport},
    sandbox::{self, Answer, Request, SOCKETS, sockets},
};

/// How long reports may take.
const LIMIT: Duration = Duration::from_secs(1);

/// How long the agent waits for its wake-up once more, which can be there and not noticed yet.
const AGAIN: Duration = Duration::from_millis(100);

/// How long the canary may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rounds whose sockets are known: their reports can come late.
const KEPT_ROUNDS: usize = 64;

/// The canary and how its last round went.
pub(super) struct Canary {
    process: Option<sandbox::Canary>,
    /// The ports that it takes; 0 for none.
    udp_port: u16,
    tcp_port: u16,
    /// Cookies of its sockets, the latest last.
    cookies: VecDeque<u64>,
    /// Of its network namespace, once a report showed it.
    netns_cookie: Option<u64>,
    number: u32,
    round: Option<Round>,
    /// Whether a round is to begin as soon as the agent has nothing else to do.
    is_wanted: bool,
    /// When everything was reported last; at first, when the monitor was armed.
    heard: Timestamp,
    /// What was reported about it last.
    problem: Option<String>,
}

struct Round {
    began: Instant,
    due: Instant,
    cookies: [u64; SOCKETS],
    seen: HashSet<(u64, EventKind)>,
    done: Option<Answer>,
    /// Whether the agent was woken meanwhile: it can find reports without.
    is_woken: bool,
    /// Whether it was found wanting before: see [`AGAIN`].
    is_suspect: bool,
    /// Whether events were lost or counted meanwhile: then it shows nothing.
    is_excused: bool,
}

/// What a round has shown.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    Whole,
    Nothing,
    Problem(String),
}

impl Canary {
    pub(super) fn new(process: Option<sandbox::Canary>, scope: &Scope, deny: &DenyRules) -> Self {
        let mut canary = Self {
            process,
            udp_port: 0,
            tcp_port: 0,
            cookies: VecDeque::new(),
            netns_cookie: None,
            number: 0,
            round: None,
            is_wanted: true,
            heard: Timestamp::now(),
            problem: None,
        };
        canary.choose_ports(scope, deny);
        canary
    }

    /// Takes watched ports from now on; where possible, some that no rule denies.
    pub(super) fn choose_ports(&mut self, scope: &Scope, deny: &DenyRules) {
        let ruled: HashSet<(u16, Transport)> = deny
            .ports
            .iter()
            .map(|(port, transport, _)| (*port, *transport))
            .collect();
        let choose = |transport: Transport| {
            let ports = scope.watched.iter().filter(|one| one.1 == transport);
            let chosen = ports.min_by_key(|one| (ruled.contains(*one), one.0));
            chosen.map_or(0, |(port, _)| *port)
        };
        self.udp_port = choose(Transport::Udp);
        self.tcp_port = choose(Transport::Tcp);
    }

    /// Inode of its network namespace.
    pub(super) fn netns(&self) -> Option<u64> {
        self.process.as_ref().map(sandbox::Canary::netns)
    }

    /// Requests a round.
    pub(super) const fn request(&mut self) {
        self.is_wanted = true;
    }

    /// Begins a requested round, unless one is under way. To be called when the ring is empty and the
    /// agent is about to wait for it.
    fn begin(&mut self) {
        if !self.is_wanted || self.round.is_some() || (self.udp_port, self.tcp_port) == (0, 0) {
            return;
        }
        self.is_wanted = false;
        let Some(process) = &self.process else { return };
        self.number = self.number.wrapping_add(1);
        // Where this fails there will be no answer, which is reported.
        let _ = process.begin(Request {
            number: self.number,
            udp_port: self.udp_port,
            tcp_port: self.tcp_port,
        });
        let now = Instant::now();
        self.round = Some(Round {
            began: now,
            due: now + LIMIT,
            cookies: [0; SOCKETS],
            seen: HashSet::new(),
            done: None,
            is_woken: false,
            is_suspect: false,
            is_excused: false,
        });
    }

    /// When to see what the round has shown.
    pub(super) fn due(&self) -> Option<Instant> {
        self.round.as_ref().map(|round| round.due)
    }

    /// Notes that the agent was woken for the ring.
    pub(super) const fn wake(&mut self) {
        if let Some(round) = &mut self.round {
            round.is_woken = true;
        }
    }

    /// Notes that events were lost or counted.
    pub(super) const fn excuse(&mut self) {
        if let Some(round) = &mut self.round {
            round.is_excused = true;
        }
    }

    /// Takes the events of the canary's sockets out of `events`.
    pub(super) fn consume(&mut self, events: &mut Vec<Event>) {
        if self.process.is_none() || events.is_empty() {
            return;
        }
        self.hear();
        events.retain(|event| !self.is_own(event));
    }

    /// Takes the canary's answers.
    fn hear(&mut self) {
        let (Some(process), Some(round)) = (&self.process, &mut self.round) else {
            return;
        };
        while round.done.is_none()
            && let Ok(Some(answer)) = process.answer()
        {
            // Otherwise of a round that took too long.
            for cookie in answer.cookies.into_iter().filter(|cookie| *cookie != 0) {
                if self.cookies.len() >= KEPT_ROUNDS * SOCKETS {
                    self.cookies.pop_front();
                }
                if !self.cookies.contains(&cookie) {
                    self.cookies.push_back(cookie);
                }
            }
            if answer.number == self.number {
                round.cookies = answer.cookies;
                round.done = (answer.is_done != 0).then_some(answer);
            }
        }
    }

    /// Whether it is an event of the canary's, which is noted then.
    pub(super) fn is_own(&mut self, event: &Event) -> bool {
        let by_netns = self.netns_cookie.is_some() && event.netns_cookie == self.netns_cookie;
        let cookie = event
            .cookie()
            .filter(|cookie| self.cookies.contains(cookie));
        let Some(cookie) = cookie else {
            return by_netns;
        };
        if event.kind == EventKind::Bind {
            self.netns_cookie = event.netns_cookie;
        }
        if let Some(round) = &mut self.round
            && round.cookies.contains(&cookie)
        {
            round.seen.insert((cookie, event.kind));
        }
        true
    }

    /// What the round has shown by now.
    fn judge(&mut self, now: Instant) -> Verdict {
        self.hear();
        let heard = self.heard;
        let Some(round) = &mut self.round else {
            return Verdict::Wait;
        };
        if round.is_excused {
            return Verdict::Nothing;
        }
        let Some(done) = round.done else {
            if now.duration_since(round.began) < PATIENCE {
                round.due = now + LIMIT;
                return Verdict::Wait;
            }
            return Verdict::Problem(
                "the canary process does not answer: it is not known whether \
                                     the BPF programs report what happens"
                    .into(),
            );
        };
        if done.join_error != 0 {
            let error = std::io::Error::from_raw_os_error(done.join_error);
            return Verdict::Problem(format!(
                "the canary is outside of --cgroup and can no longer join it, so BPF programs that \
                 report nothing are not noticed until the next start: {error}"
            ));
        }
        let expected = expected(&done);
        if expected.is_empty() {
            let error = done.errors.into_iter().chain(done.bind_errors);
            let error = error.into_iter().find(|error| *error != 0).unwrap_or(0);
            let error = std::io::Error::from_raw_os_error(error);
            return Verdict::Problem(format!("the canary cannot take a port: {error}"));
        }
        let total = expected.len();
        let mut missing: Vec<&str> = expected
            .into_iter()
            .filter(|(event, _)| !round.seen.contains(event))
            .map(|(_, program)| program)
            .collect();
        if missing.is_empty() && round.is_woken {
            return Verdict::Whole;
        }
        // Late itself, as on a busy host, or just about to be woken.
        if !round.is_suspect || now.duration_since(round.due) > AGAIN {
            round.is_suspect = true;
            round.due = now + AGAIN;
            return Verdict::Wait;
        }
        let is_all = missing.len() == total;
        missing.dedup();
        let since = heard.strftime("%Y-%m-%dT%H:%M:%SZ");
        Verdict::Problem(if is_all {
            format!("the BPF programs report nothing since {since}")
        } else if missing.is_empty() {
            format!("the BPF programs do not wake the monitor for what they report since {since}")
        } else {
            format!(
                "the BPF programs do not report everything since {since}: {}",
                missing.join(", ")
            )
        })
    }
}

/// The events that are to be reported of a round, and the program that reports each.
fn expected(done: &Answer) -> Vec<((u64, EventKind), &'static str)> {
    let mut expected = Vec::new();
    for index in 0..SOCKETS {
        let cookie = done.cookies[index];
        let bind = match index {
            sockets::UDP6 => "post_bind6",
            _ => "post_bind4",
        };
        match done.bind_errors[index] {
            _ if cookie == 0 => continue,
            0 => expected.push(((cookie, EventKind::Bind), bind)),
            // By a rule, unless another program denied it before.
            libc::EPERM => {
                expected.push(((cookie, EventKind::Deny), bind));
                continue;
            }
            _ => continue,
        }
        if index == sockets::TCP4 {
            expected.push(((cookie, EventKind::Listen), "sock_ops"));
            if done.errors[index] == 0 {
                expected.push(((cookie, EventKind::Accept), "sock_ops"));
            }
        }
        expected.push(((cookie, EventKind::Close), "sock_release"));
    }
    expected
}

impl Monitor {
    /// Begins the canary's round if it is time.
    pub(super) fn release_canary(&mut self) {
        if !self.has_more && self.scan.is_none() {
            self.canary.begin();
        }
    }

    /// Sees what the canary's round has shown.
    pub(super) fn judge_canary(&mut self) {
        let verdict = self.canary.judge(Instant::now());
        if verdict == Verdict::Wait {
            return;
        }
        self.canary.round = None;
        match verdict {
            Verdict::Wait | Verdict::Nothing => {}
            Verdict::Whole => {
                self.canary.heard = Timestamp::now();
                if self.canary.problem.take().is_some() {
                    self.report_health(
                        Severity::Warning,
                        "the canary shows that the BPF programs report everything again".into(),
                    );
                    self.scheduler.request(Urgency::Loss);
                }
            }
            Verdict::Problem(problem) => {
                if self.canary.problem.is_none() {
                    self.report_health(Severity::Critical, problem.clone());
                }
                self.canary.problem = Some(problem);
                self.scheduler.request(Urgency::Loss);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIES: [u64; SOCKETS] = [11, 12, 13];

    fn done() -> Answer {
        Answer {
            is_done: 1,
            cookies: COOKIES,
            ..Answer::default()
        }
    }

    /// What is seen of a round in which all went well.
    fn all() -> HashSet<(u64, EventKind)> {
        expected(&done())
            .into_iter()
            .map(|(event, _)| event)
            .collect()
    }

    /// A canary whose round is found wanting for the second time.
    fn canary(done: Answer, seen: HashSet<(u64, EventKind)>, is_woken: bool) -> Canary {
        let mut canary = Canary::new(None, &Scope::default(), &DenyRules::default());
        let now = Instant::now();
        canary.heard = "2026-11-25T10:00:00Z".parse().unwrap();
        canary.round = Some(Round {
            began: now,
            due: now,
            cookies: COOKIES,
            seen,
            done: Some(done),
            is_woken,
            is_suspect: true,
            is_excused: false,
        });
        canary
    }

    #[test]
    fn what_is_missing_of_a_round_is_named() {
        let now = Instant::now;
        let verdict = |done, seen, is_woken| canary(done, seen, is_woken).judge(now());
        let without = |missing: &[(u64, EventKind)]| {
            let mut seen = all();
            seen.retain(|event| !missing.contains(event));
            seen
        };
        assert_eq!(verdict(done(), all(), true), Verdict::Whole);
        // (what was seen, whether the agent was woken, what is reported)
        let cases = [
            (
                HashSet::new(),
                false,
                "report nothing since 2026-11-25T10:00:00Z",
            ),
            (all(), false, "do not wake the monitor"),
            (without(&[(12, EventKind::Bind)]), true, ": post_bind6"),
            (without(&[(13, EventKind::Accept)]), true, ": sock_ops"),
            (
                without(&[(11, EventKind::Close), (12, EventKind::Close)]),
                true,
                ": sock_release",
            ),
        ];
        for (seen, is_woken, expected) in cases {
            let Verdict::Problem(problem) = verdict(done(), seen, is_woken) else {
                panic!("{expected}")
            };
            assert!(problem.contains(expected), "{problem}");
        }
        // A denied bind is reported as such, and nothing follows it.
        let denied = Answer {
            bind_errors: [libc::EPERM; SOCKETS],
            ..done()
        };
        let seen = COOKIES.map(|cookie| (cookie, EventKind::Deny)).into();
        assert_eq!(verdict(denied, seen, true), Verdict::Whole);
        // Without IPv6 the rest is expected.
        let mut without_ipv6 = done();
        without_ipv6.cookies[sockets::UDP6] = 0;
        let seen = without(&[(12, EventKind::Bind), (12, EventKind::Close)]);
        assert_eq!(verdict(without_ipv6, seen, true), Verdict::Whole);
        for error in ["cannot take a port", "can no longer join"] {
            let failed = Answer {
                bind_errors: [libc::EADDRINUSE; SOCKETS],
                join_error: i32::from(error.contains("join")) * libc::ENODEV,
                ..done()
            };
            let verdict = verdict(failed, HashSet::new(), true);
            assert!(matches!(verdict, Verdict::Problem(why) if why.contains(error)));
        }
    }

    #[test]
    fn a_round_shows_nothing_while_events_are_lost_and_at_the_first_look() {
        let mut lossy = canary(done(), HashSet::new(), true);
        lossy.excuse();
        assert_eq!(lossy.judge(Instant::now()), Verdict::Nothing);
        let mut first = canary(done(), HashSet::new(), true);
        first.round.as_mut().unwrap().is_suspect = false;
        assert_eq!(first.judge(Instant::now()), Verdict::Wait);
        let mut late = canary(done(), HashSet::new(), true);
        assert_eq!(late.judge(Instant::now() + 2 * AGAIN), Verdict::Wait);
    }
}
