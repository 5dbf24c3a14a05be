//! Runs the conformance suite beside the real monitor, and prints a line for each scenario. Needs
//! root: `cargo xtask test`. It is also the first process of the guests of `cargo xtask vm`.

// clippy.toml exempts test functions only, and all of this is a test.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod guest;

use std::{path::PathBuf, process::ExitCode};

use portwatch::conformance::runner::{Monitor, Outcome};

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
    }
    // Test runners ask every test program for its list of tests; this one has none.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "this loads BPF programs and needs root: run `cargo xtask test`"
    );
    let monitor = Monitor::start(PathBuf::from(env!("CARGO_BIN_EXE_portwatch"))).unwrap();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    monitor.run_all(|verdict| {
        // The test set-up installs the programs that scenarios need, so a missing one is an error.
        let lacks_program = verdict.missing_program.is_some();
        let outcome = match verdict.outcome {
            Outcome::Ok => {
                passed += 1;
                "ok"
            }
            Outcome::Unavailable if !lacks_program => {
                skipped += 1;
                "skipped"
            }
            Outcome::Unavailable | Outcome::Failed => {
                failed += 1;
                "FAILED"
            }
        };
        let line = format!(
            "scenario {} ... {outcome} {}",
            verdict.scenario, verdict.detail
        );
        println!("{}", line.trim_end());
    });
    println!("\n{passed} passed, {failed} failed, {skipped} skipped\n");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
