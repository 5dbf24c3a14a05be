//! Names of earlier versions, which are still read with a warning that names the new one.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::rules::file;
use crate::support::{binary, run};

#[test]
fn collapse_keys_are_read_with_a_warning() {
    let values = |[table, idle_timeout, bind_delay]: [&str; 3]| {
        format!(
            "[{table}]\nenabled = true\nburst = 3\ninterval = \"30s\"\n\
             {idle_timeout} = \"2s\"\n{bind_delay} = \"4ms\"\n"
        )
    };
    let new = ["aggregate", "idle_timeout", "bind_delay"];
    let cases = [
        (new, &[] as &[&str]),
        (
            ["collapse", "pause", "hold"],
            &["[aggregate]", "idle_timeout", "bind_delay"],
        ),
        (["aggregate", "pause", "bind_delay"], &["idle_timeout"]),
        (["aggregate", "idle_timeout", "hold"], &["bind_delay"]),
    ];
    // Without the first line, which names the file.
    let policy = |stdout: &str| stdout.lines().skip(1).collect::<String>();
    let (_directory, path) = file(&values(new));
    let expected = policy(&run(&["check-config", path.to_str().unwrap()]).stdout);
    for (names, warnings) in cases {
        let (_directory, path) = file(&values(names));
        let finished = run(&["check-config", path.to_str().unwrap()]);
        assert!(finished.status.success(), "{names:?}: {}", finished.stderr);
        for warning in warnings {
            assert!(
                finished.stderr.contains(warning),
                "{names:?}: no {warning:?} in {:?}",
                finished.stderr
            );
        }
        assert_eq!(finished.stderr.is_empty(), warnings.is_empty(), "{names:?}");
        // Both names set the same value.
        assert_eq!(policy(&finished.stdout), expected, "{names:?}");
    }
}

#[test]
fn no_collapse_is_read_with_a_warning() {
    for (option, is_old) in [("--no-aggregate", false), ("--no-collapse", true)] {
        let mut monitor = Command::new(binary())
            .args(["run", option, "--config", "/dev/null"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = Vec::new();
        for line in BufReader::new(monitor.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            if line.starts_with("portwatch: armed: ") {
                kill(Pid::from_raw(monitor.id() as i32), Signal::SIGTERM).unwrap();
            } else {
                log.push(line);
            }
        }
        assert!(monitor.wait().unwrap().success(), "{option}: {log:?}");
        // The warning may come before or after the start line.
        assert_eq!(log.len(), usize::from(is_old), "{option}: {log:?}");
        assert_eq!(
            log.concat().contains("--no-aggregate"),
            is_old,
            "{option}: {log:?}"
        );
    }
}
