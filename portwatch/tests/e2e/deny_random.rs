//! Random rules and random binds: the kernel denies as a plain reading of the rules says, and the alerts
//! name the rule that the same reading does.

use std::fmt::Write as _;

use nix::sys::signal::Signal;
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, prop_oneof},
    sample::{select, subsequence},
    strategy::ValueTree as _,
    test_runner::{Config, RngSeed, TestRunner},
};

use super::rules::file;
use crate::support::{Cgroup, Helper, Monitor, cgroup_root, in_namespace};

/// Rule sets, each applied by a reload, and binds under each.
const RULE_SETS: usize = 30;
const BINDS: usize = 40;

/// A number that repeats a run; printed where a test fails.
const SEED: &str = "PORTWATCH_SEED";

/// The port that the kernel chooses for port 0 in the test's namespace.
const AUTOMATIC: u16 = 979;

/// After the binds of a rule set: its alert comes after all of theirs.
const SENTINEL: u16 = 988;

const CGROUPS: [&str; 4] = ["", "/a", "/a/b", "/c"];
const USERS: [u32; 3] = [0, 33, 65_534];
const TRANSPORTS: [&str; 3] = ["tcp", "udp", "udplite"];

#[derive(Clone, Debug)]
struct Rule {
    decision: &'static str,
    ports: (u16, u16),
    /// Empty for any, as the others.
    transports: Vec<&'static str>,
    users: Vec<u32>,
    cgroups: Vec<&'static str>,
    events: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct Bind {
    cgroup: &'static str,
    uid: u32,
    family: &'static str,
    /// Transport, type and protocol of the socket.
    socket: (&'static str, u8, u16),
    /// 0 for one that the kernel chooses.
    port: u16,
}

impl Bind {
    fn taken(&self) -> u16 {
        if self.port == 0 { AUTOMATIC } else { self.port }
    }
}

impl Rule {
    /// A plain reading.
    fn matches(&self, event: &str, bind: &Bind) -> bool {
        let port = bind.taken();
        let is_below = |path: &&str| {
            let rest = bind.cgroup.strip_prefix(*path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        (self.ports.0..=self.ports.1).contains(&port)
            && (self.transports.is_empty() || self.transports.contains(&bind.socket.0))
            && (self.users.is_empty() || self.users.contains(&bind.uid))
            && (self.cgroups.is_empty() || self.cgroups.iter().any(is_below))
            && (self.events.is_empty() || self.events.contains(&event))
    }
}

fn decides<'a>(rules: &'a [Rule], event: &str, bind: &Bind) -> Option<(usize, &'a Rule)> {
    let mut rules = rules.iter().enumerate();
    rules.find(|(_, rule)| rule.matches(event, bind))
}

fn text(rules: &[Rule], top: &str) -> String {
    let mut text =
        format!("[[rule]]\nname = \"sentinel\"\ndecide = \"notice\"\nport = {SENTINEL}\n");
    for (index, rule) in rules.iter().enumerate() {
        let (first, last) = rule.ports;
        writeln!(
            text,
            "[[rule]]\nname = \"{index}\"\ndecide = {:?}\nport = \"{first}-{last}\"",
            rule.decision
        )
        .unwrap();
        let cgroups: Vec<String> = rule
            .cgroups
            .iter()
            .map(|path| format!("{top}{path}"))
            .collect();
        for (key, values) in [
            ("transport", format!("{:?}", rule.transports)),
            ("user", format!("{:?}", rule.users)),
            ("cgroup", format!("{cgroups:?}")),
            ("event", format!("{:?}", rule.events)),
        ] {
            if values != "[]" {
                writeln!(text, "{key} = {values}").unwrap();
            }
        }
    }
    text
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let decision = select(vec!["ignore", "notice", "critical", "deny", "deny"]);
    let ports =
        (976_u16..=979, 0_u16..=3).prop_map(|(first, more)| (first, (first + more).min(979)));
    // Mostly none.
    let some = |few: usize| prop_oneof![2 => Just(0), 1 => 1..=few];
    let transports = some(2).prop_flat_map(|len| subsequence(TRANSPORTS.to_vec(), len));
    let users = some(2).prop_flat_map(|len| subsequence(USERS.to_vec(), len));
    let all = [&CGROUPS[..], &["/missing"]].concat();
    let cgroups = some(2).prop_flat_map(move |len| subsequence(all.clone(), len));
    let all = vec!["bind", "listen", "close", "deny"];
    let events = some(2).prop_flat_map(move |len| subsequence(all.clone(), len));
    let rule = (decision, ports, transports, users, cgroups, events).prop_map(
        |(decision, ports, transports, users, cgroups, events)| Rule {
            decision,
            ports,
            transports,
            users,
            cgroups,
            // A rule that denies has none.
            events: if decision == "deny" {
                Vec::new()
            } else {
                events
            },
        },
    );
    vec(rule, 1..=7)
}

fn bind() -> impl Strategy<Value = Bind> {
    let sockets = vec![
        ("tcp", 1, 0),
        ("tcp", 1, 262),
        ("udp", 2, 17),
        ("udplite", 2, 136),
    ];
    let port = prop_oneof![8 => 976_u16..=979, 1 => Just(0)];
    let families = select(vec!["4", "6", "mapped"]);
    (
        select(CGROUPS.to_vec()),
        select(USERS.to_vec()),
        families,
        select(sockets),
        port,
    )
        .prop_map(|(cgroup, uid, family, socket, port)| Bind {
            cgroup,
            uid,
            family,
            socket,
            port,
        })
}

/// Binds what it reads, as the real user that it reads, and prints the result. Repeats on EADDRINUSE, as
/// [`REBIND`](crate::support::REBIND) does.
const BINDER: &str = "use Socket qw(:all); use Errno 'EADDRINUSE'; $| = 1; while (<STDIN>) { \
    my ($uid, $family, $type, $protocol, $port) = split; $< = $uid; $< == $uid or die; \
    socket(my $s, $family eq '4' ? PF_INET : PF_INET6, $type, $protocol) or die \"socket: $!\"; \
    $family eq 'mapped' and setsockopt($s, 41, 26, 0); \
    my $to = $family eq '4' ? sockaddr_in($port, INADDR_LOOPBACK) : pack_sockaddr_in6($port, \
        inet_pton(AF_INET6, $family eq '6' ? '::1' : '::ffff:127.0.0.1')); my $result; \
    for (1..1000) { $result = bind($s, $to) ? 'ok' : \"$!\"; $result ne 'ok' && $! == EADDRINUSE or last; \
        select(undef, undef, undef, 0.001) } close $s; $< = 0; print \"$result\\n\" }";

#[test]
fn the_kernel_denies_as_a_plain_reading_of_the_rules_says() {
    let seed = std::env::var(SEED).map_or_else(
        |_| jiff::Timestamp::now().as_nanosecond() as u64,
        |seed| seed.parse().unwrap(),
    );
    println!("{SEED}={seed}");
    let mut runner = TestRunner::new(Config {
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    });
    in_namespace(|namespace| {
        let range = format!("{AUTOMATIC} {AUTOMATIC}");
        std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
        let top = Cgroup::new("random");
        let root = cgroup_root();
        let path = format!("/{}", top.path().strip_prefix(root).unwrap().display());
        let a = top.below("a");
        let (b, c) = (a.below("b"), top.below("c"));
        let mut binders: Vec<Helper> = [&top, &a, &b, &c]
            .map(|cgroup| cgroup.start("perl", &["-e", BINDER]))
            .into();
        let mut bind_in = |bind: &Bind| {
            let index = CGROUPS
                .iter()
                .position(|path| *path == bind.cgroup)
                .unwrap();
            let (_, kind, protocol) = bind.socket;
            let Bind {
                uid, family, port, ..
            } = bind;
            binders[index].send(&format!("{uid} {family} {kind} {protocol} {port}"));
            binders[index].line()
        };
        let (_directory, config) = file("");
        let mut monitor = Monitor::start_default(&[
            "--config",
            config.to_str().unwrap(),
            "--cgroup",
            top.path().to_str().unwrap(),
            "--no-aggregate",
        ]);
        let mut denied = 0;
        for number in 0..RULE_SETS {
            let rules = rules().new_tree(&mut runner).unwrap().current();
            std::fs::write(&config, text(&rules, &path)).unwrap();
            monitor.signal(Signal::SIGHUP);
            while !monitor.log_line().contains("reloaded ") {}
            let mut expected = Vec::new();
            for _ in 0..BINDS {
                let bind = bind().new_tree(&mut runner).unwrap().current();
                let context =
                    format!("{SEED}={seed}, rule set {number}: {bind:?} under {rules:#?}");
                let decision = decides(&rules, "bind", &bind);
                let is_denied = decision.is_some_and(|(_, rule)| rule.decision == "deny");
                let wanted = if is_denied {
                    "Operation not permitted"
                } else {
                    "ok"
                };
                assert_eq!(bind_in(&bind), wanted, "{context}");
                // UDP-Lite keeps an automatic port.
                let is_kept = bind.socket.0 == "udplite" && bind.port == 0;
                if is_denied
                    && !is_kept
                    && let Some((index, rule)) = decides(&rules, "deny", &bind)
                    && rule.decision != "ignore"
                {
                    expected.push((index.to_string(), bind.taken(), bind.socket.0, context));
                }
                denied += u32::from(is_denied);
            }
            let sentinel = Bind {
                cgroup: "",
                uid: 0,
                family: "4",
                socket: ("udp", 2, 17),
                port: SENTINEL,
            };
            assert_eq!(bind_in(&sentinel), "ok");
            let mut expected = expected.into_iter();
            loop {
                let alert = monitor.alert(namespace.inode);
                let is = |kind: &str| alert["event"] == kind;
                if is("deny") {
                    let (rule, port, transport, context) = expected.next().unwrap();
                    let found = [&alert["rule"]["name"], &alert["transport"]];
                    assert_eq!(found, [&*rule, transport], "{context}");
                    assert_eq!(alert["port"], port, "{context}");
                } else if is("bind") {
                    let is_kept = alert["transport"] == "udplite" && alert["port"] == AUTOMATIC;
                    assert!(
                        is_kept || alert["detail"].is_null(),
                        "{SEED}={seed}: {alert}"
                    );
                } else if is("close") && alert["port"] == SENTINEL {
                    break;
                }
            }
            assert_eq!(expected.next(), None, "a deny alert is missing");
        }
        let binds = (RULE_SETS * BINDS) as u32;
        assert!(
            (1..binds).contains(&denied),
            "{denied} of {binds} were denied"
        );
        // A scan reports the close of MPTCP's sockets.
        let rest = monitor.stop_with(Signal::SIGTERM, namespace.inode);
        assert!(
            rest.iter().all(|alert| alert["event"] == "close"),
            "{SEED}={seed}"
        );
    });
}
