//! Deny rules: which binds fail, which cannot be denied, and when denying ends.

use aya::maps::{Array, Map, MapData, MapInfo, loaded_maps};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    rules::{file, recipe},
    sandbox::children,
};
use crate::{
    assert_alert,
    support::{Cgroup, Monitor, in_namespace, perl},
};

/// Perl that prints the result of bind(2): `ok` or the error.
pub fn bind_script(port: u16, transport: &str) -> String {
    let kind = if transport == "tcp" {
        "SOCK_STREAM"
    } else {
        "SOCK_DGRAM"
    };
    format!(
        "use Socket; socket(my $s, PF_INET, {kind}, 0) or die; \
         print bind($s, sockaddr_in({port}, INADDR_LOOPBACK)) ? \"ok\" : \"$!\", \"\\n\""
    )
}

/// The result of bind(2) in that cgroup, as a user with CAP_NET_BIND_SERVICE.
fn bind(cgroup: &Cgroup, port: u16, transport: &str, user: &str) -> String {
    let script = bind_script(port, transport);
    let mut binder = cgroup.start(
        "setpriv",
        &[
            "--reuid",
            user,
            "--clear-groups",
            "--inh-caps",
            "+net_bind_service",
            "--ambient-caps",
            "+net_bind_service",
            "perl",
            "-e",
            &script,
        ],
    );
    let result = binder.line();
    binder.wait();
    result
}

pub const DENIED: &str = "Operation not permitted";

#[test]
fn denied_binds_fail_and_are_reported_until_the_monitor_ends() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("denied");
        let (_directory, path) = file(&recipe("Deny everything unassigned but ..."));
        let arguments = [
            "--config",
            path.to_str().unwrap(),
            "--cgroup",
            cgroup.path().to_str().unwrap(),
            "--no-aggregate",
        ];
        let monitor = Monitor::start_default(&arguments);
        for (transport, port) in [("udp", 976), ("tcp", 976)] {
            assert_eq!(bind(&cgroup, port, transport, "root"), DENIED);
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => "deny",
                "severity" => "warning",
                "transport" => transport,
                "port" => 976,
                "address" => "127.0.0.1",
                "process/comm" => "perl",
                "process/user" => "root",
                "rule/name" => "unassigned",
                "rule/reason" => "nobody has business there",
                "rule/decision" => "deny",
                "rule/dry_run" => false,
            });
        }
        // Assigned ports are not denied; the first rule exempts 955 for www-data only.
        assert_eq!(bind(&cgroup, 123, "udp", "root"), "ok");
        assert_eq!(bind(&cgroup, 955, "udp", "root"), DENIED);
        assert_eq!(monitor.alert(namespace.inode)["event"], "deny");
        assert_eq!(bind(&cgroup, 955, "udp", "www-data"), "ok");
        for event in ["bind", "close"] {
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => event,
                "severity" => "notice",
                "process/user" => "www-data",
                "rule/name" => "web",
            });
        }
        monitor.stop_without_more(namespace.inode);
        assert_eq!(bind(&cgroup, 976, "udp", "root"), "ok");

        let dry = Monitor::start_default(&[&arguments[..], &["--dry-run"]].concat());
        assert_eq!(bind(&cgroup, 976, "udp", "root"), "ok");
        for event in ["bind", "close"] {
            assert_alert!(dry.alert(namespace.inode), {
                "event" => event,
                "rule/decision" => "deny",
                "rule/dry_run" => true,
            });
        }
        dry.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_deny_rule_applies_to_cgroups_created_later() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("by-cgroup");
        let root = crate::support::cgroup_root();
        let name = cgroup
            .path()
            .strip_prefix(&root)
            .unwrap()
            .display()
            .to_string();
        let (_directory, path) = file(&format!(
            "[[rule]]\nname = \"inner\"\ndecide = \"ignore\"\nport = 976\ncgroup = \"/{name}/inner\"\n\
             [[rule]]\nname = \"outer\"\ndecide = \"deny\"\nport = 976\ncgroup = \"/{name}\"\n"
        ));
        let config = path.to_str().unwrap();
        let mut monitor = Monitor::start_default(&[
            "--config",
            config,
            "--health-interval",
            "1",
            "--no-aggregate",
        ]);
        let warning = monitor.log_line();
        assert!(warning.contains(&format!("/{name}/inner")), "{warning}");
        let inner = cgroup.below("inner");
        let deep = inner.below("deep");
        // The next health check, within a second, finds the new cgroup.
        while bind(&deep, 976, "udp", "root") == DENIED {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(bind(&inner, 976, "udp", "root"), "ok");
        assert_eq!(bind(&cgroup, 976, "udp", "root"), DENIED);
        let denied = loop {
            let alert = monitor.alert(namespace.inode);
            let path = alert["process"]["cgroup"].as_str().unwrap_or("").to_owned();
            assert_eq!(alert["event"], "deny", "{alert}");
            if !path.contains("/inner") {
                break alert;
            }
        };
        assert_alert!(denied, { "rule/name" => "outer", "process/cgroup" => format!("/{name}") });
        // The rule does not apply outside its cgroup.
        let elsewhere = Cgroup::new("elsewhere");
        assert_eq!(bind(&elsewhere, 976, "udp", "root"), "ok");
        monitor.signal(Signal::SIGKILL);
        monitor.finish();
        assert_eq!(bind(&cgroup, 976, "udp", "root"), "ok");
    });
}

/// Repeats until it holds.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let holds = (0..500).any(|_| {
        holds() || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            false
        }
    });
    assert!(holds, "{what}");
}

#[test]
fn a_rule_follows_its_cgroup_when_a_unit_starts_again() {
    in_namespace(|_| {
        let slice = Cgroup::new("slice");
        let root = crate::support::cgroup_root();
        let name = slice.path().strip_prefix(&root).unwrap().display();
        let rule = |name: &str, decision: &str, port: u16, cgroup: &str| {
            format!(
                "[[rule]]\nname = \"{name}\"\ndecide = \"{decision}\"\nport = {port}\n\
                 cgroup = \"{cgroup}\"\n"
            )
        };
        let rules = [
            rule("denied", "deny", 976, &format!("/{name}/a/denied")),
            rule("allowed", "ignore", 977, &format!("/{name}/a/allowed")),
            rule("others", "deny", 977, &format!("/{name}")),
        ];
        let (_directory, path) = file(&rules.concat());
        // No health check helps.
        let config = path.to_str().unwrap();
        let monitor = Monitor::start_default(&["--config", config, "--health-interval", "3600"]);
        for start in 0..3 {
            let parent = slice.below("a");
            for again in 0..3 {
                let denied = parent.below("denied");
                let allowed = parent.below("allowed");
                let is_right = || {
                    bind(&denied, 976, "udp", "root") == DENIED
                        && bind(&allowed, 977, "udp", "root") == "ok"
                };
                if again == 0 {
                    eventually(&format!("the rules are in force, start {start}"), is_right);
                    // Below a known directory the kernel needs no agent.
                    monitor.signal(Signal::SIGSTOP);
                } else {
                    assert!(is_right(), "start {start}.{again}");
                }
                assert_eq!(bind(&parent, 977, "udp", "root"), DENIED);
                assert_eq!(bind(&parent, 976, "udp", "root"), "ok");
            }
            monitor.signal(Signal::SIGCONT);
        }
        monitor.stop_all();
    });
}

#[test]
fn a_rule_about_a_cgroup_denies_while_nobody_can_say_who_created_it() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("uncertain");
        let root = crate::support::cgroup_root();
        let name = cgroup.path().strip_prefix(&root).unwrap().display();
        let (_directory, path) = file("");
        let config = path.to_str().unwrap();
        let mut monitor = Monitor::start_default(&["--config", config]);
        // Without its helper the monitor cannot read the marks of delegated directories.
        let [_, helper] = children(monitor.pid());
        kill(Pid::from_raw(helper as i32), Signal::SIGKILL).unwrap();
        let rules = format!(
            "[[rule]]\nname = \"denied\"\ndecide = \"deny\"\nport = 976\ncgroup = \"/{name}\"\n"
        );
        std::fs::write(&path, rules).unwrap();
        monitor.signal(Signal::SIGHUP);
        assert!(monitor.log_line().contains("reloaded"));
        assert_eq!(bind(&cgroup, 976, "udp", "root"), DENIED);
    });
}

#[test]
fn a_denied_udplite_socket_receives_nothing() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("udplite");
        let (_directory, path) = file("[[rule]]\nname = \"no\"\ndecide = \"deny\"\nport = 976\n");
        let monitor = Monitor::start_default(&[
            "--config",
            path.to_str().unwrap(),
            "--cgroup",
            cgroup.path().to_str().unwrap(),
            "--no-aggregate",
        ]);
        // It sends to the port that it was denied, and prints what comes back.
        let script = "use Socket qw(:all); for my $family (PF_INET, PF_INET6) { \
            socket(my $s, $family, SOCK_DGRAM, 136) or die; socket(my $c, $family, SOCK_DGRAM, 136) or die; \
            push @open, $s; my ($at, $to) = $family == PF_INET \
                ? (map { pack_sockaddr_in(976, inet_aton($_)) } '0.0.0.0', '127.0.0.1') \
                : map { pack_sockaddr_in6(976, inet_pton(AF_INET6, $_)) } '::', '::1'; \
            print bind($s, $at) ? 'ok' : \"$!\", ', '; send($c, 'x', 0, $to); \
            print defined(recv($s, my $got, 9, MSG_DONTWAIT)) ? 'received' : \"$!\", '; ' } \
            $| = 1; print \"\\n\"; <STDIN>";
        let mut binder = cgroup.start("perl", &["-e", script]);
        let nothing = "Resource temporarily unavailable";
        let expected = format!("{DENIED}, {nothing}; {DENIED}, {nothing};");
        assert_eq!(binder.line(), expected);
        for address in ["0.0.0.0", "::"] {
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => "deny",
                "transport" => "udplite",
                "address" => address,
                "process/comm" => "perl",
            });
        }
        // Nothing is left on the port.
        perl(
            "use Socket; socket(my $s, PF_INET6, SOCK_DGRAM, 136) or die; \
             bind($s, pack_sockaddr_in6(976, Socket::IN6ADDR_ANY)) or die $!",
        );
        binder.resume();
        binder.wait();
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_kernel_socket_that_a_user_asks_for_is_denied() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("asked-for");
        let (_directory, path) = file("[[rule]]\nname = \"no\"\ndecide = \"deny\"\nport = 978\n");
        let monitor = Monitor::start_default(&[
            "--config",
            path.to_str().unwrap(),
            "--cgroup",
            cgroup.path().to_str().unwrap(),
            "--no-aggregate",
        ]);
        // Root in a namespace of its own, nobody outside.
        let script = "ip link add vxlan0 type vxlan id 7 dstport 978; ip link set vxlan0 up 2>&1";
        let as_nobody = [
            "--reuid",
            "65534",
            "--clear-groups",
            "unshare",
            "-Urn",
            "sh",
            "-c",
            script,
        ];
        let mut device = cgroup.start("setpriv", &as_nobody);
        let result = device.line();
        assert!(result.ends_with(DENIED), "{result}");
        let alert = serde_json::from_str::<Value>(&monitor.line()).unwrap();
        assert_alert!(alert, {
            "event" => "deny",
            "port" => 978,
            "process/comm" => "ip",
            "process/uid" => 65_534,
        });
        assert_eq!(monitor.stop_all(), [] as [Value; 0]);
    });
}

/// The monitor's map of that name.
fn map_of(monitor: &Monitor, name: &str) -> MapData {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fdinfo", monitor.pid())).unwrap();
    let texts = descriptors.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    let ids: Vec<u32> = texts
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
        })
        .collect();
    let is_it = |map: &MapInfo| ids.contains(&map.id()) && map.name_as_str() == Some(name);
    let map = loaded_maps().flatten().find(is_it).unwrap();
    MapData::from_id(map.id()).unwrap()
}

#[test]
fn deny_rules_that_another_program_changes_are_put_back_and_reported() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("changed");
        let (_directory, path) = file("[[rule]]\nname = \"no\"\ndecide = \"deny\"\nport = 976\n");
        let start = |health_interval| {
            Monitor::start_default(&[
                "--config",
                path.to_str().unwrap(),
                "--cgroup",
                cgroup.path().to_str().unwrap(),
                "--no-aggregate",
                "--health-interval",
                health_interval,
            ])
        };
        let change = |monitor: &Monitor| {
            let map = Map::Array(map_of(monitor, "DENY_BANK"));
            let mut bank = Array::<_, u32>::try_from(map).unwrap();
            assert_eq!(bank.get(&0, 0).unwrap(), 1);
            bank.set(0, 0, 0).unwrap();
        };
        let monitor = start("3600");
        change(&monitor);
        assert_eq!(bind(&cgroup, 976, "udp", "root"), "ok");
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "bind",
            "rule/decision" => "deny",
            "detail" => "not denied: the deny rules in the kernel allowed it, or it could not be undone",
        });
        monitor.stop_all();

        let monitor = start("1");
        change(&monitor);
        assert_alert!(monitor.health(), {
            "severity" => "critical",
            "detail" => "another program changed the deny rules in the kernel; they are as the \
                         configuration says again",
        });
        assert_eq!(bind(&cgroup, 976, "udp", "root"), DENIED);
        monitor.stop_all();
    });
}

#[test]
fn the_kernels_own_mptcp_listener_is_neither_denied_nor_anybodys() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("endpoint");
        let (_directory, path) = file("[[rule]]\nname = \"no\"\ndecide = \"deny\"\nport = 976\n");
        let monitor = Monitor::start_default(&[
            "--config",
            path.to_str().unwrap(),
            "--cgroup",
            cgroup.path().to_str().unwrap(),
            "--no-aggregate",
            // A scan reports the close of the kernel socket.
            "--health-interval",
            "1",
        ]);
        cgroup.perl("system('ip mptcp endpoint add 127.0.0.1 dev lo signal port 976') == 0 or die");
        for event in ["bind", "listen"] {
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => event,
                "process" => Value::Null,
                "socket/kernel" => true,
                "detail" => "not denied: kernel socket",
            });
        }
        // A process's own is denied.
        let mut binder = cgroup.start_perl(
            "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 262) or die; \
             print bind($s, sockaddr_in(976, INADDR_ANY)) ? 'ok' : \"$!\", \"\\n\"",
        );
        assert_eq!(binder.line(), DENIED);
        binder.wait();
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "deny",
            "process/comm" => "perl",
        });
        namespace.ip("mptcp endpoint flush");
        assert_alert!(monitor.alert(namespace.inode), { "event" => "close" });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn sockets_that_cannot_be_denied_are_reported_with_the_reason() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("not-denied");
        let (_directory, path) =
            file("[[rule]]\nname = \"no\"\ndecide = \"deny\"\nport = \"976-978\"\n");
        let mut existing = cgroup.start_perl(
            "use Socket; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
             bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die; \
             $| = 1; print \"ready\\n\"; <STDIN>",
        );
        existing.wait_for("ready");
        let monitor = Monitor::start_default(&[
            "--config",
            path.to_str().unwrap(),
            "--cgroup",
            cgroup.path().to_str().unwrap(),
            "--no-aggregate",
            // A scan reports the close of the kernel socket.
            "--health-interval",
            "1",
        ]);
        let assert_not_denied = |event: &str, port: u16, reason: &str| {
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => event,
                "port" => port,
                "rule/name" => "no",
                "rule/decision" => "deny",
                "rule/dry_run" => false,
                "detail" => format!("not denied: {reason}"),
            });
        };
        let assert_closed = |port: u16| {
            let close = monitor.alert(namespace.inode);
            assert_alert!(close, { "event" => "close", "port" => port, "detail" => Value::Null });
        };
        assert_not_denied("bind", 976, "bound before the monitor started");
        existing.resume();
        existing.wait();
        assert_closed(976);

        // Makes 977 the only ephemeral port.
        std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "977 977").unwrap();
        cgroup.perl(
            "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; listen($s, 1) or die",
        );
        assert_not_denied("listen", 977, "no BPF hook for this operation");
        assert_closed(977);

        // A VXLAN device binds its port when it is brought up.
        cgroup.perl(
            "for ('add vxlan0 type vxlan id 7 dstport 978', 'set vxlan0 up', 'del vxlan0') { \
             system(\"ip link $_\") == 0 or die }",
        );
        assert_not_denied("bind", 978, "kernel socket");
        assert_closed(978);
        monitor.stop_without_more(namespace.inode);
    });
}
