//! `vecmill plan`: what fits into a device's memory, found before anything is loaded.
//!
//! [`picture`] draws how the memory is divided, [`report`] says the rest in text or JSON. The plan
//! itself is the engine's, the same that a server makes when it starts.

mod picture;
mod report;

use vecmill_engine::capacity::{Capacity, DType, FitError, Target};
use vecmill_engine::{MemoryBudget, StartError};

use crate::arguments::{NumberFormat, Place, PlanArguments};
use crate::failure::{Failure, TooSmall};
use crate::logging;
use crate::progress::Progress;
use crate::settings::memory::Budget;
use crate::settings::{self, Environment};
use crate::stdout;

/// Writes the plan that the arguments ask for to standard output.
pub(crate) fn run(
    arguments: PlanArguments,
    environment: &Environment,
    progress: &Progress,
) -> Result<(), Failure> {
    let target = target(&arguments)?;
    let json = arguments.json;
    let (settings, warnings) = settings::read(arguments.flags, environment)?;
    logging::start(&settings.log.log_level, false, progress, &warnings);
    let most = settings.max_batch_tokens();
    let mut builder = settings.builder().on_progress(progress.of_start());
    if let Some(memory) = arguments.memory {
        builder = builder.memory_budget(memory.0);
    }
    let plan = builder.capacity(target).map_err(|error| explained(error, target))?;
    stdout::write(|out| report::write(out, &plan, most, json))
}

/// What the plan is for.
fn target(arguments: &PlanArguments) -> Result<Target, Failure> {
    let usage = |message: &str| Err(Failure::Usage(message.to_owned()));
    let mut target = match (arguments.device, arguments.dtype) {
        (Place::Cpu, Some(NumberFormat::F16 | NumberFormat::Bf16 | NumberFormat::Fp8)) => {
            return usage("--dtype: the CPU computes in f32: leave it out, or add --device gpu");
        }
        (Place::Cpu, _) => Target::CPU,
        (Place::Gpu, dtype) => {
            let format = dtype.map_or(DType::F16, DType::from);
            Target { place: vecmill_engine::capacity::Place::Gpu(format), ..Target::GPU }
        }
    };
    match (arguments.device, arguments.memory) {
        (Place::Gpu, None) => {
            return usage("--device gpu: add --memory, what vecmill may take there, such as 8GiB");
        }
        (Place::Gpu, Some(Budget(MemoryBudget::Percent(_)))) => {
            return usage(
                "--memory: a GPU that need not be there has no memory to take a part of: give a size \
                 such as 8GiB",
            );
        }
        _ => {}
    }
    if let Some(in_flight) = arguments.in_flight {
        target.in_flight = in_flight.get();
    }
    Ok(target)
}

/// The engine's error, in this command's words where it is about memory.
fn explained(error: StartError, target: Target) -> Failure {
    match error {
        StartError::Budget(FitError::TooSmall {
            budget_bytes,
            weights_bytes,
            slab_bytes,
            tokens,
            missing_bytes,
        }) => {
            let full = matches!(target.place, vecmill_engine::capacity::Place::Gpu(DType::F32));
            Failure::TooSmall(TooSmall {
                budget: budget_bytes,
                weights: weights_bytes,
                slab: slab_bytes,
                tokens,
                missing: missing_bytes,
                advice: if full { ", or --dtype f16" } else { "" },
            })
        }
        error => Failure::Start(error),
    }
}

/// Whether more tokens than the largest batch's would fit as well.
fn has_room(plan: &Capacity) -> bool {
    // Batches are counted in whole tokens and slabs in granules: a little is left of full memory too.
    let fit = &plan.fit;
    fit.headroom_bytes / fit.in_flight.max(1) > fit.slab_bytes / 4
}
