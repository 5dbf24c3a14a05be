//! The guarantee beside a flood on all cores, against what really happened.

use std::{collections::BTreeMap, thread};

use serde_json::Value;

use crate::support::{Cgroup, Helper, Monitor, REBIND, in_namespace, totals};

/// How long the test floods; set it to let it run longer.
const SECONDS: &str = "PORTWATCH_FLOOD_SECONDS";

/// Perl that takes ports in turns and lets them go at once; now and then a socket, its own or a
/// child's, stays for 100 ms or more. It prints `lasted COOKIE PID` for each of these, and at the end
/// `happened` with the number of binds of it and its children, and of listens.
fn flood(seconds: u64, turn: &str) -> String {
    format!(
        "{REBIND} use Time::HiRes 'time'; $| = 1; my ($binds, $listens) = (0, 0); {turn} \
         sub cookie($) {{ unpack('Q', getsockopt($_[0], SOL_SOCKET, 57)) }} \
         sub lasted($$) {{ my ($s, $at) = @_; my $cookie = cookie($s); \
         select(undef, undef, undef, $at - time) while time < $at; \
         print \"lasted $cookie $$\\n\"; close $s }} \
         my ($end, $kept, $until, $turns) = (time + {seconds}); print \"ready\\n\"; \
         while (time < $end) {{ for (1..200) {{ close take() }} $turns++; \
         if (!$kept) {{ $kept = take(); $until = time + 0.11 + rand 0.2 }} \
         elsif (time > $until) {{ lasted($kept, $until); undef $kept }} \
         $turns % 50 and next; \
         pipe(my $from, my $to) or die; defined(my $child = fork) or die; \
         if (!$child) {{ close $kept if $kept; ($binds, $listens) = (0, 0); \
         for (1..100) {{ close take() }} lasted(take(), time + 0.15); \
         syswrite $to, \"$binds $listens\"; exit }} \
         close $to; my ($b, $l) = split ' ', <$from>; $binds += $b; $listens += $l; waitpid $child, 0 }} \
         lasted($kept, time + 0.15) if $kept; print \"happened $binds $listens\\n\"; <STDIN>"
    )
}

/// Perl's `take()`: a socket on 976 beside others.
fn take(kind: &str, listen: &str) -> String {
    format!(
        "sub take() {{ socket(my $s, PF_INET, {kind}, 0) or die; \
         setsockopt($s, SOL_SOCKET, SO_REUSEPORT, 1); \
         rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); $binds++; {listen} $s }}"
    )
}

/// What a flood says that it did.
#[derive(Default)]
struct Happened {
    /// Cookie and process id of each socket that lasted.
    lasted: Vec<(u64, u64)>,
    binds: u64,
    listens: u64,
}

fn watch(flood: &mut Helper) -> Happened {
    let mut happened = Happened::default();
    loop {
        let line = flood.line();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse().unwrap();
        match words[0] {
            "ready" => {}
            "lasted" => happened.lasted.push((number(1), number(2))),
            "happened" => {
                (happened.binds, happened.listens) = (number(1), number(2));
                flood.resume();
                return happened;
            }
            _ => panic!("{line}"),
        }
    }
}

#[test]
fn beside_a_flood() {
    let seconds = std::env::var(SECONDS).map_or(5, |seconds| seconds.parse().unwrap());
    in_namespace(|_| {
        let cgroup = Cgroup::new("flood");
        let path = cgroup.path().to_str().unwrap();
        let arguments = ["--config", "/dev/null", "--cgroup", path];
        let monitor = Monitor::start_default(&[&["--ring-size", "65536"][..], &arguments].concat());
        // On two cores and more: the monitor gets less than it needs for each event.
        let turns = [
            take("SOCK_DGRAM", ""),
            take("SOCK_STREAM", "listen($s, 5) or die; $listens++;"),
        ];
        let mut floods = turns.map(|turn| cgroup.start_perl(&flood(seconds, &turn)));
        let happened: Vec<Happened> = thread::scope(|scope| {
            let threads: Vec<_> = floods
                .iter_mut()
                .map(|flood| scope.spawn(|| watch(flood)))
                .collect();
            threads.into_iter().map(|one| one.join().unwrap()).collect()
        });
        floods.into_iter().for_each(Helper::wait);
        let alerts = monitor.stop_all();

        // Event and process id of what was reported, by cookie.
        let mut reported: BTreeMap<u64, Vec<(&str, &Value)>> = BTreeMap::new();
        for alert in &alerts {
            assert_ne!(alert["event"], "loss", "{alert}");
            assert_ne!(alert["origin"], "snapshot", "{alert}");
            if let Some(cookie) = alert["socket"]["cookie"].as_u64() {
                let event = (alert["event"].as_str().unwrap(), &alert["process"]["pid"]);
                reported.entry(cookie).or_default().push(event);
            }
        }
        for (happened, first) in happened.iter().zip(["bind", "listen"]) {
            for (cookie, pid) in &happened.lasted {
                let events = reported.get(cookie).map_or(&[][..], Vec::as_slice);
                for event in [first, "close"] {
                    let is_it = |one: &&(&str, &Value)| one.0 == event;
                    let its: Vec<_> = events.iter().filter(is_it).collect();
                    assert_eq!(its.len(), 1, "{event} of {cookie} by {pid}: {events:?}");
                    assert_eq!(its[0].1, pid, "{event} of {cookie}: {events:?}");
                }
            }
        }
        let binds: u64 = happened.iter().map(|one| one.binds).sum();
        let listens: u64 = happened.iter().map(|one| one.listens).sum();
        let all = [("bind", binds), ("close", binds), ("listen", listens)];
        let all = all.map(|(event, times)| (event.to_owned(), times));
        assert_eq!(totals(&alerts), all.into());
        let lasted: usize = happened.iter().map(|one| one.lasted.len()).sum();
        println!(
            "{binds} binds, {lasted} sockets that lasted, {} alerts",
            alerts.len()
        );
    });
}
