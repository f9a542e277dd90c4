//! The `fewbits` program: parses, calls the facade, prints.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
