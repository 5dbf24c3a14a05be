//! The `portwatch` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    portwatch::cli::main()
}
