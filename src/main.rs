//! argv in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::cli::main()
}
