//! Every path to a port that this kernel has, against the real monitor. Needs root:
//! `cargo xtask test`; or it is what a virtual machine of `cargo xtask vm` boots into.

// clippy.toml exempts test functions only, and all of this is a test.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod guest;

use std::{path::PathBuf, process::ExitCode};

use portwatch::conformance::runner::{Monitor, Outcome};

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
    }
    // What cargo and its friends pass to every test: a list, which this has none of.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "this loads BPF programs and needs root: run `cargo xtask test`"
    );
    let monitor = Monitor::start(PathBuf::from(env!("CARGO_BIN_EXE_portwatch"))).unwrap();
    let (mut passed, mut failed, mut absent) = (0, 0, 0);
    monitor.run_all(|verdict| {
        // Here the test set-up installs the programs that paths need; a guest has none.
        let lacks_program = verdict.missing_program.is_some();
        let outcome = match verdict.outcome {
            Outcome::Ok => {
                passed += 1;
                "ok"
            }
            Outcome::Unavailable if !lacks_program => {
                absent += 1;
                "not on this kernel"
            }
            Outcome::Unavailable | Outcome::Failed => {
                failed += 1;
                "FAILED"
            }
        };
        println!("path {} ... {outcome} {}", verdict.path, verdict.detail);
    });
    println!("\n{passed} passed, {failed} failed, {absent} skipped\n");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
