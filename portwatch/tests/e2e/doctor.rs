//! What `portwatch doctor` finds on a host.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{in_namespace, run};

/// Loads these rules into the network namespace of this thread.
fn nft(rules: &str) {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft(8), from Debian's nftables");
    let mut stdin = nft.stdin.take().unwrap();
    stdin.write_all(rules.as_bytes()).unwrap();
    drop(stdin);
    assert!(nft.wait().unwrap().success(), "{rules}");
}

/// The check of nftables' rules: whether all is well, and the detail.
fn redirects() -> (bool, String) {
    let finished = run(&["doctor", "--format", "json"]);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let check = checks
        .iter()
        .find(|check| check["name"] == "redirects by nftables")
        .unwrap();
    let detail = check["detail"].as_str().unwrap().to_owned();
    (check["ok"] == true, detail)
}

#[test]
fn rules_that_redirect_watched_ports_are_reported() {
    in_namespace(|_| {
        // 22/tcp is assigned, 8080 is no system port.
        nft("table inet t {\n\
             chain n {\n\
             type nat hook prerouting priority dstnat\n\
             tcp dport { 22, 8080 } redirect to :8081\n\
             tcp dport 976 accept\n\
             }\n}\n");
        assert_eq!(redirects(), (true, "none of a watched port".into()));
        nft("table inet t {\n\
             set s { type inet_service\n flags interval\n elements = { 10, 954-956 }\n }\n\
             chain other {\n redirect\n }\n\
             chain n {\n\
             udp dport 977 dnat ip to 127.0.0.1:53\n\
             tcp dport vmap { 976 : jump other }\n\
             meta l4proto udp udp dport @s redirect to :53\n\
             }\n}\n");
        let (is_well, detail) = redirects();
        assert!(!is_well);
        for expected in [
            "inet t n: dnat of udp 977; ",
            "inet t n: redirect of tcp 976; ",
            "inet t n: redirect of udp 10,954-956: ",
        ] {
            assert!(detail.contains(expected), "{detail}");
        }
    });
}
