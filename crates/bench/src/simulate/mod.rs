//! A simulated service on simulated devices, under vecmill's own scheduler: what each policy makes of
//! unequal devices, in seconds instead of hours.
//!
//! - `world` is the clock and the devices' work, `device` what these really are, `traffic` what comes,
//!   `figures` what came of it, `report` the table and the picture.
//!
//! The choice behind it: the scheduler is a state machine that is handed the time, so that the very
//! code that serves is what is simulated.

mod device;
mod figures;
mod report;
#[cfg(test)]
mod tests;
mod traffic;
mod world;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use vecmill_scheduler::{Coefficients, policy};

use crate::{Outcome, results};
use device::{Device, Mishap, least_makespan};
use figures::Figures;
use traffic::{Arrivals, mean_tokens};
use world::{Experiment, World};

/// About a GPU with a small model.
const MODEL: &str = "1e-3,1e-6,5e-10";

/// Arguments of `vecmill-bench simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArguments {
    /// Devices by their speed, such as 1,0.25; below 0.1 it is a processor's. May be given several times
    #[arg(long, value_name = "SPEEDS", default_values = ["1,1", "1,0.25", "1,1,0.5,0.25", "1,0.02"])]
    devices: Vec<Fleet>,
    /// What a batch takes on a device of speed 1, in seconds: A,B,C of A + B · tokens + C · Σ length²
    #[arg(long, value_name = "A,B,C", default_value = MODEL)]
    model: Model,
    /// Loads, as parts of what all devices can do together
    #[arg(long, value_delimiter = ',', default_values_t = [0.8, 0.95])]
    loads: Vec<f64>,
    /// Policies to compare; all if none is given
    #[arg(long, value_delimiter = ',')]
    policies: Vec<String>,
    /// What happens to the last device: slows-down (threefold, half-way), fails or hangs (in the
    /// third quarter)
    #[arg(long, value_name = "WHAT")]
    mishap: Option<Mishap>,
    /// Requests of each run
    #[arg(long, default_value_t = 200_000)]
    requests: u32,
    /// The same seed makes the same requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// File for a picture of the figures
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Devices by their speed.
#[derive(Debug, Clone)]
struct Fleet(Vec<f64>);

impl FromStr for Fleet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let speed = |part: &str| match part.trim().parse() {
            Ok(speed) if speed > 0.0 && speed <= 1e3 => Ok(speed),
            _ => Err(format!("`{part}` is no speed: expected numbers above 0, such as 1,0.25")),
        };
        text.split(',').map(speed).collect::<Result<_, _>>().map(Self)
    }
}

/// The time of a batch at full speed.
#[derive(Debug, Clone, Copy)]
struct Model(Coefficients);

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<f64> = text.split(',').filter_map(|part| part.trim().parse().ok()).collect();
        match parts[..] {
            [fixed, per_token, per_square] if per_token > 0.0 => {
                let model = Coefficients { fixed, per_token, per_square };
                model.are_sound().then_some(Self(model))
            }
            _ => None,
        }
        .ok_or_else(|| format!("expected three numbers of seconds, such as {MODEL}"))
    }
}

impl FromStr for Mishap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "slows-down" => Ok(Self::SlowsDown(3.0)),
            "fails" => Ok(Self::Fails),
            "hangs" => Ok(Self::Hangs),
            _ => Err("expected slows-down, fails or hangs".to_owned()),
        }
    }
}

/// What runs under one policy.
#[derive(Debug, Clone, Serialize)]
struct Row {
    devices: Vec<f64>,
    /// `None` where all the work is there at the beginning.
    load: Option<f64>,
    policy: String,
    /// The time taken, relative to the least possible; only where all the work is there at once.
    of_least_makespan: Option<f64>,
    figures: Figures,
}

/// What the devices have to do.
#[derive(Debug, Clone, Copy)]
struct Work {
    load: Option<f64>,
    requests: u32,
    seed: u64,
}

/// Simulates and prints a table.
pub(crate) fn run(arguments: &SimulateArguments) -> Outcome {
    let policies: Vec<String> = if arguments.policies.is_empty() {
        policy::names().map(str::to_owned).collect()
    } else {
        arguments.policies.clone()
    };
    let begin = Instant::now();
    let mut rows = Vec::new();
    for Fleet(speeds) in &arguments.devices {
        let mut devices: Vec<_> =
            speeds.iter().map(|&speed| Device::new(speed, arguments.model.0)).collect();
        if let Some(last) = devices.last_mut() {
            last.mishap = arguments.mishap;
        }
        let loads = arguments.loads.iter().map(|&load| Some(load)).chain([None]);
        // A mishap comes at a part of the run, and how long bulk work runs is what is asked.
        for load in loads.filter(|load| load.is_some() || arguments.mishap.is_none()) {
            let work = Work { load, requests: arguments.requests, seed: arguments.seed };
            for policy in &policies {
                rows.push(simulate(&devices, &work, policy)?);
            }
        }
    }
    let simulated = f64::from(arguments.requests) * rows.len() as f64;
    let rate = simulated / begin.elapsed().as_secs_f64();
    results::line(&report::table(&rows))?;
    results::line(&format!("{:.2} million requests simulated per second", rate / 1e6))?;
    if let Some(file) = &arguments.svg {
        fs::write(file, report::draw(&rows))?;
    }
    results::write(arguments.output.as_deref(), "simulated", &rows)
}

fn simulate(devices: &[Device], work: &Work, policy: &str) -> Result<Row, Box<dyn Error>> {
    let &Work { load, requests, seed } = work;
    let arrivals = match load {
        Some(load) => {
            let rate: f64 = devices.iter().map(Device::rate).sum();
            Arrivals::Random { rate: load * rate / mean_tokens() }
        }
        None => Arrivals::AtOnce,
    };
    let outcome = World::new(Experiment { devices, arrivals, requests, seed, policy })?.run();
    let tokens = outcome.done.tokens as f64;
    let least = least_makespan(devices, tokens, outcome.done.squares / tokens);
    let figures = outcome.figures();
    Ok(Row {
        devices: devices.iter().map(|device| device.speed).collect(),
        load,
        policy: policy.to_owned(),
        of_least_makespan: load.is_none().then_some(figures.seconds / least),
        figures,
    })
}
