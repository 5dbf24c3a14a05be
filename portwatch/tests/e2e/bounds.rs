//! Bounds in bytes: the length of a line and the monitor's memory, whatever processes call themselves.

use crate::support::{Cgroup, Helper, Monitor, in_namespace};

/// Bytes of a line.
const MAX_LINE: usize = 16_384;

/// Processes, each with a socket that stays open.
const PROCESSES: u64 = 200;

/// By how much so many may let the monitor grow: what is remembered of each takes about 6 KB, whatever
/// it is called, and the caches a few MB in total. Without limits it is more than 25 MB.
const MAX_GROWTH: u64 = 6 << 20;

/// Runs a copy of perl whose path, working directory and arguments are as long as the kernel allows
/// and of characters that take six bytes each in JSON. It forks the processes.
fn long_names(cgroup: &Cgroup, directory: &tempfile::TempDir) -> Helper {
    const OUTER: &str = r#"
        use File::Copy; chdir $ARGV[0] or die;
        for (1..15) { mkdir "\x01" x 250 or die "mkdir: $!"; chdir "\x01" x 250 or die }
        copy("/usr/bin/perl", "perl") or die; chmod 0755, "perl";
        exec "./perl", "-e", $ARGV[1], $ARGV[2], "\x01" x 60000, "x"; die "exec: $!""#;
    const INNER: &str = r#"
        use Socket qw(:all); pipe(my $r, my $w); $| = 1;
        for my $i (1..$ARGV[0]) {
            next if fork;
            socket(my $s, PF_INET, SOCK_DGRAM, 0) or die;
            bind($s, sockaddr_in(976, pack("C4", 127, 1, $i >> 8, $i & 255))) or die "bind: $!";
            syswrite($w, "x"); <STDIN>; exit
        }
        for (1..$ARGV[0]) { sysread($r, my $x, 1) }
        print "bound\n"; <STDIN>; 1 while wait > 0"#;
    let path = directory.path().to_str().unwrap();
    let processes = PROCESSES.to_string();
    cgroup.start("perl", &["-e", OUTER, path, INNER, &processes])
}

/// The monitor's resident memory in bytes, without what is mapped from files: its own code comes and
/// goes, whatever processes are called.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kilobytes.parse::<u64>().unwrap() << 10
}

#[test]
fn long_names_make_neither_long_lines_nor_a_large_monitor() {
    in_namespace(|namespace| {
        let directory = tempfile::tempdir().unwrap();
        // What other tests do is not to be remembered.
        let cgroup = Cgroup::new("bounds");
        let monitor = Monitor::start(&["--cgroup", cgroup.path().to_str().unwrap()]);
        let before = resident(monitor.pid());
        let mut processes = long_names(&cgroup, &directory);
        processes.wait_for("bound");
        for _ in 0..PROCESSES {
            let alert = monitor.alert(namespace.inode);
            assert_eq!(alert["event"], "bind");
            let line = alert.to_string();
            assert!(line.len() < MAX_LINE, "{}", line.len());
            let process = &alert["process"];
            let last = process["cmdline"].as_array().unwrap().last().unwrap();
            for text in [&process["exe"], &process["cwd"], last] {
                assert!(text.as_str().unwrap().ends_with(" bytes)"), "{text}");
            }
        }
        let growth = resident(monitor.pid()).saturating_sub(before);
        assert!(growth < MAX_GROWTH, "{} KB", growth >> 10);
        drop(processes);
        monitor.stop_all();
    });
}
