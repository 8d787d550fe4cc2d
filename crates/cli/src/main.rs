//! The `vecmill` binary: arguments become settings, settings become commands.
//!
//! - [`arguments`] is the command line, [`settings`] what it, the environment and a file set.
//! - [`serve`], [`embed`], [`plan`], [`convert`], [`ab`], [`devices`] and [`completions`] are the
//!   commands.
//! - [`logging`] and [`progress`] write to [`stderr`]; results alone go to [`stdout`].
//! - [`signals`] says what signals do.
//! - [`failure`] knows why a command failed and with which exit code.

mod ab;
mod arguments;
mod completions;
mod convert;
mod devices;
mod embed;
mod failure;
mod logging;
mod new_file;
mod patient;
mod plan;
mod progress;
mod serve;
mod settings;
mod signals;
mod stderr;
mod stdout;
mod units;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::failure::Failure;
use crate::progress::Progress;

fn main() -> ExitCode {
    logging::report_panics();
    // A panic here is the end, but not before it is written down.
    let code = std::panic::catch_unwind(run).unwrap_or(ExitCode::from(101));
    stderr::finish();
    code
}

fn run() -> ExitCode {
    signals::report_large_files();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return answered(&answer),
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .collect();
    let progress = Progress::new();
    let outcome = match arguments.command {
        Command::Serve(arguments) => serve::run(arguments, &environment, &progress),
        Command::Embed(arguments) => embed::run(arguments, &environment, &progress),
        Command::Plan(arguments) => plan::run(arguments, &environment, &progress),
        Command::Convert(arguments) => convert::run(arguments, &environment, &progress),
        Command::Ab(arguments) => ab::run(arguments, &environment, &progress),
        Command::Devices(arguments) => devices::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    };
    ended(outcome)
}

fn ended(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            logging::report(&failure);
            failure.exit_code()
        }
    }
}

/// Prints what the parser answers instead of arguments: help, the version, or a mistake in usage.
fn answered(answer: &clap::Error) -> ExitCode {
    let printed = answer.print().map_err(Failure::Stdout);
    if answer.use_stderr() { ExitCode::from(2) } else { ended(printed) }
}
