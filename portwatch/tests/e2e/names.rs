//! A program that names itself to forge a line, colour the terminal or break the JSON.

use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::support::{Agent, binary, copy_program, in_namespace};

/// At most 15 bytes, so that all of it is the comm.
const EVIL: &[u8] = b"a\n\x1b[31m{\"\xff\r";

/// What stands for it in every output.
const SHOWN: &str = "a\\n\\u{1b}[31m{\"\\xff\\r";

/// An nc whose file name, and so its exe and comm, and whose arguments are hostile.
fn evil_nc(folder: &tempfile::TempDir, port: &str) -> std::process::Child {
    let path = folder.path().join(OsStr::from_bytes(EVIL));
    if !path.exists() {
        copy_program(Path::new("/usr/bin/nc"), &path);
    }
    Command::new(path)
        .arg0(OsStr::from_bytes(EVIL))
        .args(["-l", "127.0.0.1", port])
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn hostile_names_stay_within_their_json_strings() {
    in_namespace(|namespace| {
        let folder = tempfile::tempdir().unwrap();
        let agent = Agent::start(&[]);
        let mut nc = evil_nc(&folder, "976");
        // Each line was validated against the schema, which has no room for a control character.
        for alert in agent.alerts(namespace.inode, 2) {
            let process = &alert["process"];
            assert_eq!(process["comm"], SHOWN);
            assert_eq!(
                process["cmdline"],
                serde_json::json!([SHOWN, "-l", "127.0.0.1", "976"])
            );
            assert!(process["exe"].as_str().unwrap().ends_with(SHOWN));
        }
        nc.kill().unwrap();
        nc.wait().unwrap();
        assert_eq!(agent.alert(namespace.inode)["event"], "close");
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}

#[test]
fn hostile_names_stay_within_their_text_line() {
    in_namespace(|namespace| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary());
        command.args(["--format", "text", "--no-collapse"]);
        let mut agent = Agent::spawn(&mut command);
        let mut nc = evil_nc(&folder, "976");
        // Other tests' lines may stand between.
        let netns = format!(" netns={} ", namespace.inode);
        let mut lines = Vec::new();
        while lines.len() < 2 {
            lines.extend(Some(agent.line()).filter(|line| line.contains(&netns)));
        }
        nc.kill().unwrap();
        nc.wait().unwrap();
        agent.signal(Signal::SIGTERM);
        let finished = agent.finish();
        let rest = finished.stdout.lines().filter(|line| line.contains(&netns));
        lines.extend(rest.map(String::from));
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, event) in lines.iter().zip([" bind ", " listen ", " close "]) {
            assert!(line.starts_with("20") && line.contains(event), "{line:?}");
            let fields = shlex::split(line).unwrap();
            assert!(
                fields
                    .iter()
                    .any(|field| field.starts_with(&format!("{SHOWN}["))),
                "{line:?}"
            );
            let value = |key: &str| {
                fields
                    .iter()
                    .find_map(|field| field.strip_prefix(key))
                    .unwrap()
            };
            assert!(value("exe=").ends_with(SHOWN), "{line:?}");
            let cmdline = shlex::split(value("cmdline=")).unwrap();
            assert_eq!(cmdline, [SHOWN, "-l", "127.0.0.1", "976"], "{line:?}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    });
}
