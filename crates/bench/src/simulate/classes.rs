//! Several classes of work on the same devices, each of another model.
//!
//! The choice behind it: what a class gets is set beside what it has of the devices alone, with its own
//! requests at the same times; the time that classes have had is that at the last request's arrival,
//! before queues run empty.

use std::fmt::Write;
use std::str::FromStr;

use serde::Serialize;
use vecmill_lab::results;
use vecmill_lab::traffic::{Arrival, Mix};
use vecmill_scheduler::{ClassId, Coefficients, Priority};

use super::device::Device;
use super::figures::Times;
use super::world::{Experiment, OtherClass, World};
use super::{Fleet, LARGE, LONGEST, Model, SimulateArguments};
use crate::Outcome;

/// A class of work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ClassSpec {
    /// How many times as long its batches take.
    slower: f64,
    /// The part of all devices' time that its requests need.
    load: f64,
    weight: f64,
    priority: Priority,
}

impl FromStr for ClassSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').map(str::trim).collect();
        let number = |at: usize, usual: Option<f64>| match parts.get(at) {
            Some(part) => part.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0),
            None => usual,
        };
        let priority = match parts.get(3) {
            None => Some(Priority::Interactive),
            Some(&"bulk") => Some(Priority::Bulk),
            Some(_) => None,
        };
        match (number(0, None), number(1, None), number(2, Some(1.0)), priority) {
            (Some(slower), Some(load), Some(weight), Some(priority)) if parts.len() <= 4 => {
                Ok(Self { slower, load, weight, priority })
            }
            _ => Err(format!(
                "`{text}` is no class: expected SLOWER:LOAD[:WEIGHT[:bulk]], such as 4:0.3 or 1:0.5:2"
            )),
        }
    }
}

/// What became of a class.
#[derive(Debug, Clone, Serialize)]
struct ClassFigures {
    slower: f64,
    load: f64,
    weight: f64,
    bulk: bool,
    /// Its part of the time that all classes had had when the last request came, in seconds of the
    /// fastest device.
    share: f64,
    times: Times,
    /// With the devices for itself.
    alone: Times,
}

/// What runs under one policy.
#[derive(Debug, Clone, Serialize)]
struct Row {
    devices: Vec<f64>,
    policy: String,
    classes: Vec<ClassFigures>,
}

/// Simulates and prints a table.
pub(super) fn run(arguments: &SimulateArguments, policies: &[String]) -> Outcome {
    let mut rows = Vec::new();
    for Fleet(speeds) in &arguments.devices {
        for policy in policies {
            let classes = simulate(speeds, arguments, policy)?;
            rows.push(Row { devices: speeds.clone(), policy: policy.clone(), classes });
        }
    }
    results::line(&table(&rows))?;
    results::write(arguments.output.as_deref(), "simulated", &rows)
}

/// Devices as a class has them.
fn devices(speeds: &[f64], model: Model, spec: ClassSpec) -> Vec<Device> {
    let Model(full) = model;
    let full = Coefficients {
        fixed: full.fixed * spec.slower,
        per_token: full.per_token * spec.slower,
        per_square: full.per_square * spec.slower,
    };
    speeds.iter().map(|&speed| Device::new(speed, full)).collect()
}

fn simulate(
    speeds: &[f64],
    arguments: &SimulateArguments,
    policy: &str,
) -> Result<Vec<ClassFigures>, Box<dyn std::error::Error>> {
    let classes = &arguments.classes;
    let truths: Vec<_> =
        classes.iter().map(|&spec| devices(speeds, arguments.model, spec)).collect();
    let mix = |class: usize| Mix {
        large: LARGE,
        longest: LONGEST,
        seed: arguments.seed.wrapping_add(1000 * class as u64),
    };
    let rates: Vec<f64> = (0..classes.len())
        .map(|class| {
            let whole: f64 = truths[class].iter().map(Device::rate).sum();
            classes[class].load * whole / mix(class).mean_tokens()
        })
        .collect();
    let span = f64::from(arguments.requests) / rates.iter().sum::<f64>();
    let arrivals = |class: usize| {
        let rate = rates[class];
        let due = mix(class).requests(0);
        due.map(move |request| Arrival { at: request.at / rate, ..request })
            .take_while(move |request| request.at < span)
    };
    let experiment = |class: usize, others| Experiment {
        devices: &truths[class],
        others,
        policy,
        seed: arguments.seed,
        priority: classes[class].priority,
        span,
        ..Experiment::EMPTY
    };
    let others: Vec<OtherClass> = (1..classes.len())
        .map(|class| OtherClass {
            devices: truths[class].clone(),
            weight: classes[class].weight / classes[0].weight,
            priority: classes[class].priority,
        })
        .collect();
    let mut all: Vec<(ClassId, Arrival)> = (0..classes.len())
        .flat_map(|class| arrivals(class).map(move |request| (ClassId::new(class), request)))
        .collect();
    all.sort_by(|(_, a), (_, b)| a.at.total_cmp(&b.at));
    let requests = u32::try_from(all.len())?;
    let together = World::new(Experiment { requests, ..experiment(0, &others) })?;
    let outcome = together.run_classes(all.into_iter());
    let had: f64 = outcome.had.iter().sum();
    let mut figures = Vec::new();
    for (class, spec) in classes.iter().enumerate() {
        let requests = u32::try_from(arrivals(class).count())?;
        let alone = World::new(Experiment { requests, ..experiment(class, &[]) })?;
        figures.push(ClassFigures {
            slower: spec.slower,
            load: spec.load,
            weight: spec.weight,
            bulk: spec.priority == Priority::Bulk,
            share: outcome.had.get(class).map_or(0.0, |seconds| seconds / had),
            times: outcome.times(Some(ClassId::new(class))),
            alone: alone.run(arrivals(class)).times(None),
        });
    }
    Ok(figures)
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:16} {:16} {:>6} {:>5} {:>6} {:>6} {:>9} {:>9} {:>9} {:>9}  alone: {:>9} {:>9}",
        "devices",
        "policy",
        "slower",
        "load",
        "weight",
        "share",
        "wait ms",
        "mean ms",
        "p50 ms",
        "p99 ms",
        "mean ms",
        "p99 ms"
    );
    for row in rows {
        let devices = row.devices.iter().map(f64::to_string).collect::<Vec<_>>().join(":");
        for class in &row.classes {
            let ClassFigures { slower, load, weight, bulk, share, times, alone } = class;
            // Writing to a string can't fail.
            let _ = write!(
                text,
                "\n{devices:16} {:16} {slower:6} {load:5} {weight:6} {share:6.2} {:9.1} {:9.1} \
                 {:9.1} {:9.1}         {:9.1} {:9.1}{}",
                row.policy,
                times.mean_wait_ms,
                times.mean_ms,
                times.p50_ms,
                times.p99_ms,
                alone.mean_ms,
                alone.p99_ms,
                if *bulk { "  bulk" } else { "" },
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: SimulateArguments,
    }

    fn figures(devices: &str, classes: &str, policy: &str) -> Vec<ClassFigures> {
        let given = ["", "--devices", devices, "--classes", classes, "--requests", "20000"];
        let Command { arguments } = Command::parse_from(given);
        let Fleet(speeds) = &arguments.devices[0];
        simulate(speeds, &arguments, policy).unwrap()
    }

    #[test]
    fn overloaded_classes_share_devices_by_their_weight() {
        for devices in ["1", "1,0.25"] {
            let figures = figures(devices, "1:0.9:1,8:0.9:3", "earliest-finish");
            let share = figures[1].share;
            assert!((share - 0.75).abs() < 0.05, "{devices}: {figures:?}");
        }
    }

    #[test]
    fn a_class_that_needs_less_than_its_part_is_hardly_held_up_by_one_that_wants_all() {
        let figures = figures("1,1", "1:0.2,1:2", "earliest-finish");
        assert!((figures[0].share - 0.2).abs() < 0.1, "{figures:?}");
        assert!(figures[0].times.p99_ms < 0.1 * figures[1].times.p99_ms, "{figures:?}");
    }

    #[test]
    fn what_is_no_class_is_named() {
        for wrong in ["", "1", "1:0", "1:x", "1:0.5:1:slow", "1:0.5:1:bulk:2"] {
            assert!(wrong.parse::<ClassSpec>().unwrap_err().contains("expected"), "{wrong}");
        }
        let bulk: ClassSpec = "2:0.5:3:bulk".parse().unwrap();
        assert_eq!((bulk.weight, bulk.priority), (3.0, Priority::Bulk));
    }
}
