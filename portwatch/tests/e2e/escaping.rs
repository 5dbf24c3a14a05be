//! Process names that try to forge a line, drive the terminal or break the JSON.

use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::support::{Monitor, binary, copy_program, in_namespace};

/// At most 15 bytes, the maximum of comm.
const HOSTILE: &[u8] = b"a\n\x1b[31m{\"\xff\r";

/// The escaped name, as in every output.
const ESCAPED: &str = "a\\n\\u{1b}[31m{\"\\xff\\r";

/// Starts nc with a hostile file name (thus exe and comm) and hostile arguments.
fn hostile_nc(directory: &tempfile::TempDir, port: &str) -> std::process::Child {
    let path = directory.path().join(OsStr::from_bytes(HOSTILE));
    if !path.exists() {
        copy_program(Path::new("/usr/bin/nc"), &path);
    }
    Command::new(path)
        .arg0(OsStr::from_bytes(HOSTILE))
        .args(["-l", "127.0.0.1", port])
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn hostile_names_are_escaped_in_json() {
    in_namespace(|namespace| {
        let directory = tempfile::tempdir().unwrap();
        let monitor = Monitor::start(&[]);
        let mut nc = hostile_nc(&directory, "976");
        // The schema, against which each alert is checked, allows no control character.
        for alert in monitor.alerts(namespace.inode, 2) {
            let process = &alert["process"];
            assert_eq!(process["comm"], ESCAPED);
            assert_eq!(
                process["cmdline"],
                serde_json::json!([ESCAPED, "-l", "127.0.0.1", "976"])
            );
            assert!(process["exe"].as_str().unwrap().ends_with(ESCAPED));
        }
        nc.kill().unwrap();
        nc.wait().unwrap();
        assert_eq!(monitor.alert(namespace.inode)["event"], "close");
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn hostile_names_are_escaped_in_text() {
    in_namespace(|namespace| {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary());
        command.args(["--format", "text", "--no-aggregate"]);
        let mut monitor = Monitor::spawn(&mut command);
        let mut nc = hostile_nc(&directory, "976");
        // Skips lines about other tests' sockets.
        let netns = format!(" netns={} ", namespace.inode);
        let mut lines = Vec::new();
        while lines.len() < 2 {
            lines.extend(Some(monitor.line()).filter(|line| line.contains(&netns)));
        }
        nc.kill().unwrap();
        nc.wait().unwrap();
        monitor.signal(Signal::SIGTERM);
        let finished = monitor.finish();
        let rest = finished.stdout.lines().filter(|line| line.contains(&netns));
        lines.extend(rest.map(String::from));
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, event) in lines.iter().zip([" bind ", " listen ", " close "]) {
            assert!(line.starts_with("20") && line.contains(event), "{line:?}");
            let fields = shlex::split(line).unwrap();
            assert!(
                fields
                    .iter()
                    .any(|field| field.starts_with(&format!("{ESCAPED}["))),
                "{line:?}"
            );
            let value = |key: &str| {
                fields
                    .iter()
                    .find_map(|field| field.strip_prefix(key))
                    .unwrap()
            };
            assert!(value("exe=").ends_with(ESCAPED), "{line:?}");
            let cmdline = shlex::split(value("cmdline=")).unwrap();
            assert_eq!(cmdline, [ESCAPED, "-l", "127.0.0.1", "976"], "{line:?}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    });
}

#[test]
fn what_commands_quote_of_a_file_is_escaped() {
    const NAME: &str = "a\\u001b[2J\\n\\u202e\\u2800\\ufe0f\\u0301\\U000e0041b";
    const PRINTED: &str = "a\\u{1b}[2J\\n\\u{202e}\\u{2800}\\u{fe0f}\\u{301}\\u{e0041}b";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("\u{1b}[31m\u{202e}.toml");
    let name = path.to_str().unwrap();
    let rule = |decision: &str| {
        format!("[[rule]]\nname = \"{NAME}\"\nreason = \"{NAME}\"\ndecide = \"{decision}\"\n")
    };
    let alert =
        r#"{"event":"bind","port":976,"transport":"udp","registry":{"status":"unassigned"}}"#;
    let explain = format!("echo '{alert}' | \"$0\" explain-alert --config \"$1\"");
    let shell = || {
        let mut command = Command::new("sh");
        command.args(["-c", &explain]).arg(binary()).arg(&path);
        command
    };
    let check = || {
        let mut command = Command::new(binary());
        command.arg("check-config").arg(&path);
        command
    };
    for (text, has_name) in [
        (rule("notice"), true),
        (rule("notice") + &rule("notice"), true),
        (rule("ignroe\u{9b}31m\u{2028}"), false),
        ("x = \"\u{202e}\u{e0041}\" y \u{9b}\n".to_owned(), false),
    ] {
        std::fs::write(&path, text).unwrap();
        for mut command in [check(), shell()] {
            let finished = crate::support::finish(&mut command);
            let output = finished.stdout + &finished.stderr;
            assert!(
                !output.contains('\u{1b}') && !output.contains(name),
                "{output:?}"
            );
            let hidden = [
                '\u{202e}',
                '\u{2800}',
                '\u{fe0f}',
                '\u{301}',
                '\u{e0041}',
                '\u{9b}',
                '\u{2028}',
            ];
            assert!(!output.contains(hidden), "{output:?}");
            assert_eq!(output.contains(PRINTED), has_name, "{output}");
        }
    }
}
