//! Where a socket can be reached: its device, the scope of its address, and whether IPv4 gets in.

use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    assert_alert,
    support::{Monitor, binary, in_namespace, listed, run},
};

struct Case {
    local: &'static str,
    device: Option<&'static str>,
    v6only: Option<bool>,
    kind: Type,
}

impl Case {
    /// A socket that is bound there, and listens if it can.
    fn open(&self, scope: u32) -> Socket {
        let mut local: SocketAddr = self.local.parse().unwrap();
        let socket = Socket::new(Domain::for_address(local), self.kind, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        if let Some(v6only) = self.v6only {
            socket.set_only_v6(v6only).unwrap();
        }
        match (&mut local, self.device) {
            (SocketAddr::V6(local), Some(_)) if local.ip().is_unicast_link_local() => {
                local.set_scope_id(scope);
            }
            (_, Some(device)) => {
                setsockopt(&socket, sockopt::BindToDevice, &device.into()).unwrap()
            }
            (_, None) => {}
        }
        socket.bind(&SockAddr::from(local)).unwrap();
        if self.kind == Type::STREAM {
            socket.listen(8).unwrap();
        }
        socket
    }
}

#[test]
fn the_device_the_scope_and_v6only_are_in_alerts_and_lists() {
    let case = |local, device, v6only, kind| Case {
        local,
        device,
        v6only,
        kind,
    };
    let cases = [
        case("0.0.0.0:976", Some("lo"), None, Type::STREAM),
        case("0.0.0.0:976", Some("other0"), None, Type::STREAM),
        case("[fe80::1]:977", Some("other0"), None, Type::STREAM),
        case("[::]:978", None, Some(true), Type::STREAM),
        case("[::]:979", None, Some(false), Type::STREAM),
        case("[::]:980", Some("lo"), Some(true), Type::DGRAM),
        case("127.0.0.1:981", None, None, Type::DGRAM),
    ];
    let check = |alert: &Value, case: &Case| {
        let (device, v6only) = (json!(case.device), json!(case.v6only));
        assert_alert!(alert, { "device" => device, "v6only" => v6only });
    };
    in_namespace(|namespace| {
        namespace.ip("link add other0 type veth peer name other1");
        namespace.ip("link set other0 up");
        namespace.ip("link set other1 up");
        namespace.ip("addr add 10.85.0.1/24 dev other0");
        namespace.ip("addr add fe80::1/64 dev other0 nodad");
        let scope = nix::net::if_::if_nametoindex("other0").unwrap();
        let monitor = Monitor::start(&[]);
        let mut sockets = Vec::new();
        let mut cookies = Vec::new();
        for case in &cases {
            sockets.push(case.open(scope));
            let events = match case.kind {
                Type::STREAM => &["bind", "listen"][..],
                _ => &["bind"],
            };
            for event in events {
                let alert = monitor.alert(namespace.inode);
                assert_alert!(alert, { "event" => event, "origin" => "live" });
                check(&alert, case);
                cookies.push(alert["socket"]["cookie"].clone());
            }
        }
        cookies.dedup();
        assert_eq!(cookies.len(), cases.len());

        let list = in_namespace(|_| listed(namespace.inode, &[]));
        let second = Monitor::start(&[]);
        let snapshot = second.alerts(namespace.inode, cases.len());
        for alerts in [&list, &snapshot] {
            assert_eq!(alerts.len(), cases.len());
            for (cookie, case) in cookies.iter().zip(&cases) {
                let alert = alerts.iter().find(|one| one["socket"]["cookie"] == *cookie);
                check(alert.unwrap(), case);
            }
        }
        let table = run(&["list"]).stdout;
        for text in [
            "0.0.0.0:976 on lo ",
            "0.0.0.0:976 on other0 ",
            "[fe80::1%other0]:977 on other0 ",
            "[::]:978 (IPv6 only) ",
            "[::]:979 (and IPv4) ",
        ] {
            assert!(table.contains(text), "{text} in {table}");
        }
        let explained = run(&["explain", "977"]).stdout;
        assert!(
            explained.contains("tcp '[fe80::1%other0]:977' listening on other0"),
            "{explained}"
        );

        drop(sockets);
        for case in &cases {
            check(&monitor.alert(namespace.inode), case);
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_rule_matches_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("portwatch.toml");
    let text = "[[rule]]\nname = \"inside\"\ndecide = \"ignore\"\ndevice = [\"oth*\"]\n";
    std::fs::write(&config, text).unwrap();
    in_namespace(|namespace| {
        namespace.ip("link add other0 type veth peer name other1");
        namespace.ip("link set other0 up");
        namespace.ip("link set other1 up");
        let arguments = ["--no-aggregate", "--config", config.to_str().unwrap()];
        let monitor = Monitor::start_default(&arguments);
        for device in ["other0", "lo"] {
            let case = Case {
                local: "0.0.0.0:976",
                device: Some(device),
                v6only: None,
                kind: Type::DGRAM,
            };
            drop(case.open(0));
        }
        for event in ["bind", "close"] {
            let alert = monitor.alert(namespace.inode);
            assert_alert!(alert, { "event" => event, "device" => "lo" });
            for (device, decides) in [("lo", false), ("other0", true)] {
                let mut alert = alert.clone();
                alert["device"] = json!(device);
                let file = directory.path().join("alert.json");
                std::fs::write(&file, alert.to_string()).unwrap();
                let explained = std::process::Command::new(binary())
                    .args(["explain-alert", "--config", config.to_str().unwrap()])
                    .stdin(std::fs::File::open(&file).unwrap())
                    .output()
                    .unwrap();
                let text = String::from_utf8(explained.stdout).unwrap();
                assert_eq!(text.contains("inside"), decides, "{device}: {text}");
            }
        }
        monitor.stop_without_more(namespace.inode);
    });
}
