use serde_json::{Value, json};

use super::*;

fn watched() -> Vec<PortKey> {
    let ports = [955, 956, 957, 976, 977, 978, 979, 980, 985, 1000, 1023];
    let mut ports: Vec<PortKey> = [Transport::Tcp, Transport::Udp, Transport::Sctp]
        .into_iter()
        .flat_map(|transport| ports.map(|port| PortKey { transport, port }))
        .collect();
    ports.sort_unstable();
    ports
}

/// Chain, kind and ports of each.
fn outline(redirects: &Redirects) -> Vec<String> {
    let line = |one: &Redirect| format!("{}: {} {}", one.chain, one.by, port_ranges(&one.ports));
    redirects.all.iter().map(line).collect()
}

fn nft_rules(objects: &Value) -> Vec<String> {
    let json = json!({ "nftables": objects }).to_string();
    outline(&nft::parse(json.as_bytes()).unwrap().of_ports(&watched()))
}

/// The redirects of one rule in a chain that the kernel calls. The objects are as nft 1.0.6 shows
/// them.
fn nft_rule(expr: &Value) -> Vec<String> {
    let in_table = |kind: &str, rest: Value| {
        let mut object = json!({ "family": "inet", "table": "t" });
        let fields = object.as_object_mut().unwrap();
        fields.extend(rest.as_object().unwrap().clone());
        json!({ kind: object })
    };
    nft_rules(&json!([
        { "metainfo": { "json_schema_version": 1 } },
        in_table("set", json!({ "name": "s", "elem": [{ "range": [10, 20] }, 976, { "elem": { "val": 978, "timeout": 9 } }] })),
        in_table("map", json!({ "name": "m", "map": "ipv4_addr", "elem": [[955, "10.0.0.1"]] })),
        in_table("map", json!({ "name": "v", "map": "verdict", "elem": [[955, { "jump": { "target": "other" } }]] })),
        in_table("chain", json!({ "name": "n", "type": "nat", "hook": "prerouting" })),
        in_table("chain", json!({ "name": "f", "type": "filter", "hook": "prerouting" })),
        in_table("chain", json!({ "name": "other" })),
        in_table("chain", json!({ "name": "loop" })),
        in_table("rule", json!({ "chain": "other", "expr": [{ "redirect": null }] })),
        in_table("rule", json!({ "chain": "loop", "expr": [{ "jump": { "target": "loop" } }] })),
        in_table("rule", json!({ "chain": "f", "expr": [{ "redirect": null }] })),
        in_table("rule", json!({ "chain": "n", "expr": expr })),
    ]))
}

fn port(protocol: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": "dport" } })
}

fn when(left: &Value, op: &str, right: &Value) -> Value {
    json!({ "match": { "op": op, "left": left, "right": right } })
}

#[test]
fn nft_rules_are_followed_to_the_ports_that_they_redirect() {
    const ALL: &str = "955-957,976-980,985,1000,1023";
    let (tcp, udp, th) = (port("tcp"), port("udp"), port("th"));
    let redirect = json!({ "redirect": { "port": 8080 } });
    let l4 = json!({ "meta": { "key": "l4proto" } });
    let pair = json!({ "concat": [{ "payload": { "protocol": "ip", "field": "daddr" } }, tcp] });
    let pairs = json!({ "set": [{ "concat": ["10.0.0.1", 957] }] });
    let by_port =
        |data: Value| json!({ "dnat": { "addr": { "map": { "key": tcp, "data": data } } } });
    let vmap = |key: &Value, data: Value| json!({ "vmap": { "key": key, "data": data } });
    let jump = json!({ "jump": { "target": "other" } });
    let set = json!({ "set": [976, { "range": [980, 985] }] });
    let interface = when(
        &json!({ "meta": { "key": "iifname" } }),
        "==",
        &json!("eth0"),
    );
    let all = |transports: &[&str]| {
        let all: Vec<String> = transports
            .iter()
            .map(|one| format!("{one} {ALL}"))
            .collect();
        format!("redirect {}", all.join(" "))
    };
    let cases = [
        (
            json!([when(&tcp, "==", &json!(976)), redirect]),
            "redirect tcp 976".to_owned(),
        ),
        (
            json!([when(&tcp, "==", &set), redirect]),
            "redirect tcp 976,980,985".into(),
        ),
        (
            json!([when(&udp, "==", &json!("@s")), redirect]),
            "redirect udp 976,978".into(),
        ),
        (
            json!([when(&udp, "==", &json!("@gone")), redirect]),
            all(&["udp"]),
        ),
        (
            json!([when(&tcp, "!=", &json!({ "range": [1, 999] })), redirect]),
            "redirect tcp 1000,1023".into(),
        ),
        (
            json!([when(&tcp, ">=", &json!(1000)), redirect]),
            "redirect tcp 1000,1023".into(),
        ),
        (
            json!([when(&tcp, "<", &json!(956)), redirect]),
            "redirect tcp 955".into(),
        ),
        (
            json!([when(&tcp, ">", &json!(1000)), redirect]),
            "redirect tcp 1023".into(),
        ),
        (
            json!([when(&tcp, "<=", &json!(955)), redirect]),
            "redirect tcp 955".into(),
        ),
        (
            json!([
                when(&l4, "==", &json!({ "set": ["tcp", 17] })),
                when(&th, "==", &json!(978)),
                redirect
            ]),
            "redirect tcp 978 udp 978".into(),
        ),
        (
            json!([when(&l4, "==", &json!("icmp")), redirect]),
            String::new(),
        ),
        (
            json!([interface, { "counter": { "packets": 0, "bytes": 0 } }, redirect]),
            all(&["tcp", "udp", "sctp"]),
        ),
        (
            json!([when(&pair, "==", &pairs), redirect]),
            "redirect tcp 957".into(),
        ),
        (json!([when(&pair, "!=", &pairs), redirect]), all(&["tcp"])),
        (json!([by_port(json!("@m"))]), "dnat tcp 955".into()),
        (
            json!([by_port(json!({ "set": [[956, "10.0.0.2"]] }))]),
            "dnat tcp 956".into(),
        ),
        (
            json!([when(&tcp, "==", &json!(977)), { "dnat": { "addr": "10.0.0.1", "port": 53 } }]),
            "dnat tcp 977".into(),
        ),
        (
            json!([when(&tcp, "==", &json!(977)), jump]),
            "redirect tcp 977".into(),
        ),
        (
            json!([vmap(
                &tcp,
                json!({ "set": [[979, jump], [976, { "accept": null }]] })
            )]),
            "redirect tcp 979".into(),
        ),
        (json!([vmap(&tcp, json!("@v"))]), "redirect tcp 955".into()),
        (
            json!([when(&tcp, "==", &json!(80)), redirect]),
            String::new(),
        ),
        (
            json!([when(&tcp, "==", &json!(976)), { "accept": null }]),
            String::new(),
        ),
        (json!([{ "jump": { "target": "loop" } }]), String::new()),
        (json!([{ "jump": { "target": "missing" } }]), String::new()),
    ];
    for (rule, expected) in cases {
        let expected: Vec<String> = (!expected.is_empty())
            .then(|| format!("inet t n: {expected}"))
            .into_iter()
            .collect();
        assert_eq!(nft_rule(&rule), expected, "{rule}");
    }
}

#[test]
fn iptables_rules_are_followed_to_the_ports_that_they_redirect() {
    let text = "# Generated by iptables-save v1.8.9 (nf_tables)\n\
        *filter\n\
        -A PREROUTING -p tcp -m tcp --dport 955 -j REDIRECT\n\
        COMMIT\n\
        *nat\n\
        :PREROUTING ACCEPT [0:0]\n\
        :X - [0:0]\n\
        -A PREROUTING -p tcp -m multiport --dports 976,980:985 -m comment --comment \"it's -j X\" -j REDIRECT --to-ports 8080\n\
        -A PREROUTING -p tcp -m tcp ! --dport 1:1022 -j X\n\
        -A PREROUTING ! -p tcp -j X\n\
        -A OUTPUT -p 17 -m udp --dport 977 -g X\n\
        -A X -m udp -p udp --dport 977:978 -j DNAT --to-destination 10.0.0.1:53\n\
        -A X -p tcp -j REDIRECT\n\
        -A POSTROUTING -p tcp --dport 955 -j DNAT\n\
        -A PREROUTING 'unclosed\n\
        COMMIT\n";
    let redirects = iptables::parse(text, "iptables").of_ports(&watched());
    let expected = [
        "iptables nat PREROUTING: REDIRECT tcp 976,980,985",
        "iptables nat PREROUTING: REDIRECT tcp 1023",
        "iptables nat PREROUTING: DNAT udp 977-978",
        // `! -p tcp` is not understood: more is shown than happens.
        "iptables nat PREROUTING: REDIRECT tcp 955-957,976-980,985,1000,1023",
        "iptables nat OUTPUT: DNAT udp 977",
    ];
    assert_eq!(outline(&redirects), expected);
    assert!(!redirects.is_partial);
}

#[test]
fn virtual_servers_are_read() {
    let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
        Prot LocalAddress:Port Scheduler Flags\n  \
          -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
        TCP  C0A80001:03D0 rr  \n  \
          -> 0A000002:1F90      Masq    1      0          0         \n\
        TCP  C0A80001:0050 rr  \n\
        UDP  [fc00:0000:0000:0000:0000:0000:0000:0001]:03D1 wlc  \n\
        SCTP  C0A80001:0000 rr persistent 300 FFFFFFFF\n\
        FWM  00000001 rr  \n";
    let all = parse_ipvs(text, &watched()[..4]);
    let shown: Vec<String> = all.iter().map(|one| port_ranges(&one.ports)).collect();
    assert_eq!(shown, ["tcp 976", "tcp 955-957,976"]);
    let all = parse_ipvs(text, &watched());
    assert_eq!(port_ranges(&all[1].ports), "udp 977");
    assert_eq!(all.len(), 4);
}

#[test]
fn what_is_no_ruleset_is_rejected_and_many_rules_are_bounded() {
    for bytes in [&b""[..], b"{", b"[]", b"{\"nftables\": 5}"] {
        assert!(nft::parse(bytes).is_err());
    }
    let mut text = String::from("*nat\n");
    // Each of ten chains calls the next one four times: a million rules to follow.
    for chain in 0..10 {
        let name = |number: u32| match number {
            0 => "PREROUTING".to_owned(),
            number => format!("C{number}"),
        };
        for _ in 0..4 {
            text.push_str(&format!("-A {} -j {}\n", name(chain), name(chain + 1)));
        }
    }
    let redirects = iptables::parse(&text, "iptables").of_ports(&watched());
    assert!(redirects.is_partial);
    let shown = describe(redirects).unwrap_err();
    assert!(shown.contains("not checked: further rules"), "{shown}");
}

#[test]
fn a_program_that_does_not_answer_is_ended() {
    let sh = PathBuf::from("/bin/sh");
    let run = |script: &str, timeout| run(&sh, &["-c", script], timeout);
    let long = Duration::from_secs(60);
    assert_eq!(run("printf x", long), Ok(b"x".to_vec()));
    let cases = [
        ("exec sleep 600", Duration::from_millis(50), "no answer"),
        (
            "exec >&-; exec sleep 600",
            Duration::from_millis(50),
            "did not end",
        ),
        ("exit 3", long, "3"),
        ("exec cat /dev/zero", long, "more than"),
    ];
    for (script, timeout, expected) in cases {
        let error = run(script, timeout).unwrap_err();
        assert!(error.contains(expected), "{script}: {error}");
    }
}
