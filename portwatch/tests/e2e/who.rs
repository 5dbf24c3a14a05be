//! Who is connected: `list --connections` and the peers of `explain`, from the kernel alone.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

use jsonschema::Validator;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::support::{Helper, binary, finish, in_namespace, run};

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let schema = include_str!("../../../docs/connection.schema.json");
    jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap()
});

/// The connections in that network namespace, by `list --connections` in another one.
fn connections(netns: u64) -> Vec<Value> {
    let list = in_namespace(|_| run(&["list", "--connections", "--format", "json"]));
    assert!(list.status.success(), "{}", list.stderr);
    assert_eq!(list.stderr, "");
    let rows = list.stdout.lines().map(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        if let Err(error) = SCHEMA.validate(&row) {
            panic!("{error}: {row}");
        }
        row
    });
    rows.filter(|row| row["netns"] == netns).collect()
}

/// Repeats `read` until it is `expected`: acknowledgements take their time.
fn until<T: PartialEq + std::fmt::Debug>(expected: &T, read: impl Fn() -> T) {
    let began = Instant::now();
    loop {
        let now = read();
        if now == *expected {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{now:?} is not {expected:?}"
        );
    }
}

/// A connection from `from` to `to`, with a bind or, on port 0 of no address, without.
fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let from: SocketAddr = from.parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    if from.port() != 0 || !from.ip().is_unspecified() {
        socket.bind(&SockAddr::from(from)).unwrap();
    }
    socket.connect(&SockAddr::from(to)).unwrap();
    socket.into()
}

/// Also where a child that another test forks holds a copy.
fn end(listener: &TcpListener) {
    SockRef::from(listener).shutdown(Shutdown::Both).unwrap();
}

fn send(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) {
    from.write_all(&vec![7; bytes]).unwrap();
    to.read_exact(&mut vec![0; bytes]).unwrap();
}

#[test]
fn open_connections_have_their_direction_and_exact_bytes() {
    const KEYS: [&str; 4] = ["direction", "state", "bytes_in", "bytes_out"];
    let facts = |netns: u64, port: u16| {
        move || -> Vec<Value> {
            let mut rows = connections(netns);
            rows.retain(|row| row["local"]["port"] == port);
            let facts = rows.iter().map(|row| KEYS.map(|key| row[key].clone()));
            facts.map(Value::from_iter).collect()
        }
    };
    in_namespace(|namespace| {
        let netns = namespace.inode;
        for (listens, to) in [
            ("127.0.0.1:976", "127.0.0.1:976"),
            ("[::]:976", "127.0.0.1:976"),
            ("[::1]:976", "[::1]:976"),
        ] {
            let listener = TcpListener::bind(listens).unwrap();
            let mut client = TcpStream::connect(to).unwrap();
            let peer = client.local_addr().unwrap();
            let waits = connections(netns);
            assert_eq!(waits.len(), 1, "{waits:?}");
            // Before accept(2) nobody has it open.
            let expected = json!([null, null, "in", 0, 0]);
            let keys = ["process", "uid", "direction", "holders", "bytes_in"];
            assert_eq!(
                Value::from_iter(keys.map(|key| waits[0][key].clone())),
                expected
            );
            let (mut server, _) = listener.accept().unwrap();
            send(&mut client, &mut server, 12_345);
            send(&mut server, &mut client, 300_000);
            until(
                &vec![json!(["in", "established", 12_345, 300_000])],
                facts(netns, 976),
            );
            let rows = connections(netns);
            let row = &rows[0];
            assert_eq!(
                row["peer"],
                json!({"address": peer.ip(), "port": peer.port()})
            );
            assert_eq!(row["process"]["pid"], std::process::id());
            assert_eq!(row["process"]["user"], "root");
            assert_eq!((&row["uid"], &row["holders"]), (&json!(0), &json!(1)));
            assert!(row["idle_ms"].as_u64().unwrap() < 60_000, "{row}");
            client.shutdown(Shutdown::Write).unwrap();
            until(
                &vec![json!(["in", "close-wait", 12_345, 300_000])],
                facts(netns, 976),
            );
            // Without its listener it is not known who connected; the bytes are.
            end(&listener);
            until(
                &vec![json!([null, "close-wait", 12_345, 300_000])],
                facts(netns, 976),
            );
            SockRef::from(&client)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            SockRef::from(&server)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop((client, server));
            until(&Vec::new(), facts(netns, 976));
        }

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let mut client = connect("127.0.0.1:979", to);
        let (mut server, _) = listener.accept().unwrap();
        send(&mut client, &mut server, 54_321);
        send(&mut server, &mut client, 7);
        until(
            &vec![json!(["out", "established", 7, 54_321])],
            facts(netns, 979),
        );
        // Also with a listener on its port.
        let same = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        same.set_reuse_address(true).unwrap();
        let local: SocketAddr = "127.0.0.1:979".parse().unwrap();
        if same.bind(&SockAddr::from(local)).is_ok() && same.listen(1).is_ok() {
            until(
                &vec![json!(["out", "established", 7, 54_321])],
                facts(netns, 979),
            );
        }
        client.shutdown(Shutdown::Write).unwrap();
        until(
            &vec![json!(["out", "fin-wait-2", 7, 54_321])],
            facts(netns, 979),
        );
    });
}

#[test]
fn a_connection_made_without_a_bind_is_not_taken_for_accepted() {
    in_namespace(|namespace| {
        std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "976 977").unwrap();
        let server = TcpListener::bind("127.0.0.1:5000").unwrap();
        let mut client = connect("0.0.0.0:0", server.local_addr().unwrap());
        let (mut accepted, _) = server.accept().unwrap();
        send(&mut client, &mut accepted, 10);
        let _same = TcpListener::bind(client.local_addr().unwrap()).unwrap();
        let facts = || {
            let rows = connections(namespace.inode);
            let facts = rows
                .iter()
                .map(|row| (row["direction"].clone(), row["bytes_out"].clone()));
            facts.collect::<Vec<_>>()
        };
        until(&vec![(Value::Null, json!(10))], facts);
    });
}

#[test]
fn the_table_shows_what_the_kernel_shows() {
    in_namespace(|namespace| {
        let listener = TcpListener::bind("127.0.0.1:976").unwrap();
        let mut client = TcpStream::connect("127.0.0.1:976").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        send(&mut client, &mut server, 12_345);
        let peer = client.local_addr().unwrap();
        let me = std::process::id();
        let line = |program: &mut Command| {
            let finished = finish(program);
            assert!(finished.status.success(), "{}", finished.stderr);
            let lines = finished.stdout.lines().map(|line| {
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                words.join(" ")
            });
            let mut lines: Vec<String> = lines.collect();
            assert_eq!(
                lines.remove(0),
                "LOCAL PEER DIRECTION BYTES IN BYTES OUT IDLE PROCESS USER NETNS"
            );
            lines.retain(|line| line.contains(&peer.to_string()));
            assert_eq!(lines.len(), 1, "{lines:?}");
            (lines.remove(0), finished.stderr)
        };
        let (text, stderr) = line(Command::new(binary()).args(["list", "--connections"]));
        assert_eq!(stderr, "");
        let start = format!("127.0.0.1:976 {peer} in 12345 0 ");
        assert!(text.starts_with(&start), "{text}");
        assert!(
            text.contains(&format!("[{me}] root {}", namespace.inode)),
            "{text}"
        );

        // Another user sees the counters and not the process.
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("portwatch");
        crate::support::copy_program(binary(), &program);
        open_to_all(directory.path());
        let (text, stderr) = line(
            Command::new("setpriv")
                .args(["--reuid", "65534", "--clear-groups"])
                .arg(&program)
                .args(["list", "--connections"]),
        );
        assert!(text.starts_with(&start), "{text}");
        assert!(text.contains(" - 0 "), "{text}");
        assert!(stderr.contains("not root"), "{stderr}");
    });
}

fn open_to_all(directory: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn explain_sums_the_connections_of_each_peer() {
    in_namespace(|_| {
        let listener = TcpListener::bind("0.0.0.0:4976").unwrap();
        let mut open = Vec::new();
        let mut add = |address: IpAddr, bytes_in: usize, bytes_out: usize| {
            let from = SocketAddr::new(address, 0).to_string();
            let mut client = connect(&from, "127.0.0.1:4976".parse().unwrap());
            let (mut server, _) = listener.accept().unwrap();
            send(&mut client, &mut server, bytes_in);
            send(&mut server, &mut client, bytes_out);
            open.push((client, server));
        };
        let address = |number| IpAddr::from(Ipv4Addr::new(127, 0, 1, number));
        add(address(1), 1000, 5);
        add(address(1), 2000, 6);
        add(address(2), 100, 200_000);
        for number in 3..=24 {
            add(address(number), 10, 0);
        }
        let peers = || {
            let text = run(&["explain", "4976/tcp"]).stdout;
            let (_, peers) = text
                .split_once("Peers with TCP connections open now:\n")
                .unwrap();
            let lines = peers.lines().map(|line| {
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                words.join(" ")
            });
            lines.collect::<Vec<_>>()
        };
        let first = |direction: &str| {
            vec![
                "ADDRESS DIRECTION OPEN BYTES IN BYTES OUT".into(),
                format!("127.0.1.2 {direction} 1 100 200000"),
                format!("127.0.1.1 {direction} 2 3000 11"),
                format!("127.0.1.3 {direction} 1 10 0"),
            ]
        };
        until(&first("in"), || peers()[..4].to_vec());
        let all = peers();
        assert_eq!(all.len(), 22, "{all:?}");
        assert_eq!(all[21], "4 more: 4 connections, 40 bytes in, 0 bytes out");
        end(&listener);
        until(&first("unknown"), || peers()[..4].to_vec());
        drop(open);
        until(&vec!["none".to_owned()], peers);
        assert!(!run(&["explain", "4976/udp"]).stdout.contains("Peers"));
    });
}

#[test]
fn names_are_quoted_and_link_local_addresses_have_their_scope() {
    in_namespace(|namespace| {
        namespace.ip("link add here0 type veth peer name here1");
        namespace.ip("link set here0 up");
        namespace.ip("link set here1 up");
        namespace.ip("addr add fe80::1/64 dev here0 nodad");
        let scope = nix::net::if_::if_nametoindex("here0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("in 9 0 host");
        crate::support::copy_program(std::path::Path::new("/usr/bin/perl"), &program);
        let script = format!(
            "use Socket qw(:all); socket(my $l, PF_INET6, SOCK_STREAM, 0) or die; \
             bind($l, pack_sockaddr_in6(976, inet_pton(AF_INET6, 'fe80::1'), {scope})) or die \"$!\"; \
             listen($l, 5) or die; socket(my $c, PF_INET6, SOCK_STREAM, 0) or die; \
             connect($c, getsockname($l)) or die \"$!\"; accept(my $s, $l) or die; \
             $| = 1; print \"ready\\n\"; sleep 600"
        );
        let mut server = Helper::start(Command::new(&program).args(["-e", &script]));
        server.wait_for("ready");
        let rows = connections(namespace.inode);
        assert_eq!(rows.len(), 1, "{rows:?}");
        let facts = ["device", "direction"].map(|key| &rows[0][key]);
        assert_eq!(facts, ["here0", "in"]);
        assert_eq!(rows[0]["process"]["comm"], "in 9 0 host");
        let text = run(&["list", "--connections"]).stdout;
        let process = format!("'in 9 0 host'[{}]", server.pid());
        for expected in ["[fe80::1%here0]:976 on here0  [fe80::1%here0]:", &process] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        let text = run(&["explain", "976/tcp"]).stdout;
        // Beside those of other tests.
        let is_it = |line: &str| {
            line.split_ascii_whitespace()
                .take(3)
                .eq(["fe80::1%here0", "in", "1"])
        };
        assert!(text.lines().any(is_it), "{text}");
    });
}

#[test]
fn check_is_not_for_connections() {
    let finished = run(&["list", "--connections", "--check"]);
    assert_eq!(finished.status.code(), Some(2), "{}", finished.stderr);
}
