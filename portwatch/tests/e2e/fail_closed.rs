//! `--fail-closed`: denying outlives the monitor, and its pins are the monitor's alone.

use std::process::Command;

use super::{
    deny::{DENIED, bind_script},
    rules::file,
};
use crate::support::{Cgroup, binary, finish, in_namespace};

/// Runs a shell script in a mount namespace of its own with a BPF file system that everybody can
/// write, as the kernel makes it. `$pw`, `$run` (a monitor that denies 976 in a cgroup, fail-closed,
/// whose stderr goes to the file `log`) and `bind` (which prints the result of a bind there) are set;
/// the script ends the monitor. Its output.
fn fail_closed(script: &str) -> String {
    let mut output = String::new();
    in_namespace(|_| {
        let cgroup = Cgroup::new("closed");
        let (_directory, path) = file("[[rule]]\nname = \"no\"\ndecide = \"deny\"\nport = 976\n");
        let prelude = format!(
            "mount -t bpf -o mode=1777 bpf /sys/fs/bpf\n\
             pins=/sys/fs/bpf/portwatch; pw={pw}\n\
             start() {{ $pw run --fail-closed --health-interval 1 --cgroup {cgroup} --config {config} \
               >alerts 2>log & echo $! >pid; until grep -q armed: log; do \
               kill -0 $(cat pid) || {{ cat log; exit 1; }}; sleep 0.1; done; }}\n\
             alert() {{ until grep -q \"$1\" alerts; do sleep 0.1; done; grep -m 1 -o \"$1.*\" alerts; }}\n\
             stop() {{ kill -9 $(cat pid); wait $(cat pid) || true; }}\n\
             bind() {{ sh -c 'echo $$ >{cgroup}/cgroup.procs; exec perl -e \"$0\"' '{bind}'; }}\n",
            pw = binary().display(),
            cgroup = cgroup.path().display(),
            config = path.display(),
            bind = bind_script(976, "udp").replace('\'', ""),
        );
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-ec", &(prelude + script)])
            .current_dir(directory.path());
        let finished = finish(&mut command);
        assert!(
            finished.status.success(),
            "{}{}",
            finished.stdout,
            finished.stderr
        );
        output = finished.stdout;
    });
    output
}

#[test]
fn fail_closed_denies_until_unpin() {
    let output = fail_closed(
        "start; stop; bind; $pw unpin; bind; $pw unpin 2>&1; test ! -e $pins && echo clean",
    );
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        lines,
        [DENIED, "ok", "portwatch: nothing is pinned", "clean"]
    );
}

#[test]
fn the_directory_of_the_pins_is_ours_alone() {
    let cases = [
        (
            "a user's directory",
            "setpriv --reuid 65534 mkdir -m 0777 $pins",
        ),
        ("a user's file", "ln -s /tmp $pins"),
        (
            "a loose directory",
            "mkdir -m 0777 $pins; mkdir $pins/post_bind4",
        ),
    ];
    for (case, prepare) in cases {
        let output = fail_closed(&format!(
            "{prepare}; start; stat -c '%u %a %F' $pins; ls $pins; stop; bind; $pw unpin; bind; \
             grep -c 'moved it to /sys/fs/bpf/portwatch-not-ours' log || true"
        ));
        let lines: Vec<&str> = output.lines().collect();
        let moved = if case == "a loose directory" {
            "0"
        } else {
            "1"
        };
        assert_eq!(
            lines,
            [
                "0 700 directory",
                "bind4",
                "bind6",
                "post_bind4",
                "post_bind6",
                DENIED,
                "ok",
                moved
            ],
            "{case}"
        );
    }
}

#[test]
fn pins_that_go_while_the_monitor_runs_are_put_back_and_reported() {
    let cases = [
        (
            "rm $pins/post_bind4",
            "the pin of the program post_bind4 was gone, and is there again",
        ),
        (
            "rm -r $pins",
            "the pin of the program post_bind6 was gone, and is there again",
        ),
        (
            "mv $pins $pins-2; rm -r $pins-2",
            "the pin of the program post_bind4 was gone",
        ),
        (
            "rm $pins/post_bind4; mkdir $pins/post_bind4",
            "the pin of the program post_bind4 was gone",
        ),
        (
            "rm $pins/post_bind4; mkdir -p $pins/post_bind4/ && touch $pins/post_bind4/x || true",
            "the pin of the program post_bind4",
        ),
    ];
    for (tamper, detail) in cases {
        let output = fail_closed(&format!(
            "start; {tamper}; alert '{detail}'; stop; bind; $pw unpin; bind"
        ));
        let lines: Vec<&str> = output.lines().collect();
        assert!(lines[0].starts_with(detail), "{tamper}: {output}");
        assert_eq!(lines[1..], [DENIED, "ok"], "{tamper}");
    }
}

#[test]
fn a_shared_bpf_file_system_without_the_sticky_bit_is_an_error() {
    let output = fail_closed(
        "chmod 0777 /sys/fs/bpf; (start) || true; chmod 0700 /sys/fs/bpf; start; stop; bind; $pw unpin",
    );
    assert!(
        output.contains("others can rename what is in /sys/fs/bpf (owner 0, mode 777): chown it to root, chmod 0700"),
        "{output}"
    );
    assert!(output.ends_with(&format!("{DENIED}\n")), "{output}");
}
