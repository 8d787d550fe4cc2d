//! vecmill's experiments, each a command that prints a table and writes its figures as JSON.
//!
//! - `workload` simulates a service's traffic; `record` turns it into recordings of memory, of whole
//!   batches and of single tensors, with the plans of a `dummy` model.
//! - `replay` runs such recordings through the memory pool and other ways of managing memory; `latency`
//!   and `pressure` measure the pool on a GPU.
//! - `encode` measures an encoder alone, `load` a server over HTTP; `texts` makes what they embed,
//!   `tokenize` measures tokenising alone.
//! - `digest` says in a line each what is computed and planned, for comparing two builds.
//! - `simulate` has vecmill's scheduler deal with simulated devices, under each of its policies.
//!
//! Requests, statistics and pictures are those of `vecmill_lab`, which has `vecmill ab`.

mod digest;
mod dummy;
mod encode;
mod latency;
mod load;
mod pressure;
mod record;
mod replay;
mod simulate;
mod texts;
mod tokenize;
mod workload;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vecmill_lab::results;

type Outcome = Result<(), Box<dyn Error>>;

/// Measure vecmill: its encoder, its server, its memory pool
#[derive(Debug, Parser)]
#[command(name = "vecmill-bench", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write recordings of a simulated service's memory: of batches and of tensors
    Record(record::RecordArguments),
    /// Time lease and return on a GPU, beside cuMemAllocAsync and cuMemAlloc
    Latency(latency::LatencyArguments),
    /// Run a recording, or a simulated day, through the pool and other ways of managing memory
    Replay(replay::ReplayArguments),
    /// Ten minutes of random sizes, spikes to the budget and a neighbour that takes the rest
    Pressure(pressure::PressureArguments),
    /// Time an encoder alone: tokens on the host to vectors on the host
    Encode(encode::EncodeArguments),
    /// What models compute and how batches are planned, as digests to compare two builds by
    Digest(digest::DigestArguments),
    /// Load a server's /v1/embeddings and tell rate, latency and where the time goes
    Load(load::LoadArguments),
    /// Compare the scheduler's policies on simulated devices
    Simulate(simulate::SimulateArguments),
    /// What a simulation makes of the devices and requests of a vecmill ab, beside what it measured
    Predict(simulate::PredictArguments),
    /// Write texts of a known number of tokens
    Texts(texts::TextsArguments),
    /// Time tokenising alone, per core
    Tokenize(tokenize::TokenizeArguments),
    /// Be the neighbour: allocate and free a GPU's memory at random until told to stop
    Neighbour(pressure::NeighbourArguments),
}

/// Does what the command line asks for.
fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Record(arguments) => record::run(&arguments),
        Command::Latency(arguments) => latency::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Pressure(arguments) => pressure::run(&arguments),
        Command::Encode(arguments) => encode::run(&arguments),
        Command::Digest(arguments) => digest::run(&arguments),
        Command::Load(arguments) => load::run(&arguments),
        Command::Simulate(arguments) => simulate::run(&arguments),
        Command::Predict(arguments) => simulate::predict(&arguments),
        Command::Texts(arguments) => texts::run(&arguments),
        Command::Tokenize(arguments) => tokenize::run(&arguments),
        Command::Neighbour(arguments) => pressure::be_neighbour(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            results::complain(&*error);
            ExitCode::FAILURE
        }
    }
}
