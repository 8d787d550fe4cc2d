//! `vecmill completions`: a script that completes the command line in a shell.

use std::io::Write;

use clap::CommandFactory;

use crate::arguments::{Arguments, CompletionsArguments};
use crate::failure::Failure;
use crate::stdout;

/// Writes the script to standard output.
pub(crate) fn run(arguments: &CompletionsArguments) -> Result<(), Failure> {
    // The generator panics if it can't write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "vecmill", &mut script);
    stdout::write(|out| out.write_all(&script))
}
