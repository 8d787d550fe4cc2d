//! What the devices can do at all: together, and each alone.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::AbError;
use super::generator::Generator;
use super::observer::{divided, observe, work};
use crate::traffic::Mix;

/// Batches' worth of tokens that are kept on their way for each device.
const BATCHES: usize = 4;

/// How often the devices are looked at.
const STEP: f64 = 0.05;

/// What devices do that never have to wait for work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SustainedRate {
    /// The sum of all devices.
    pub tokens_per_second: f64,
    /// What each does beside the others.
    pub devices: Vec<DeviceRate>,
}

/// What one of them does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceRate {
    /// The device.
    pub name: String,
    /// Tokens per second, all its time counted.
    pub tokens_per_second: f64,
    /// The part of the time that it was at work.
    pub busy_share: f64,
    /// Tokens per second while it is at work.
    pub own_speed: f64,
}

/// What a device does alone, and beside the others.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Interference {
    pub(super) name: String,
    /// Tokens per second of its own speed.
    pub(super) alone: f64,
    pub(super) together: f64,
    /// What is left of its speed beside the others.
    pub(super) factor: f64,
}

impl SustainedRate {
    /// Measures for so many seconds, after others that are dropped.
    pub(super) fn measure(
        generator: &Generator<'_>,
        mix: Mix,
        (warm_up, seconds): (f64, f64),
    ) -> Result<Self, AbError> {
        let info = generator.engine.info();
        let tokens = BATCHES * info.max_batch_tokens * info.devices.len();
        let (start, until) = (Instant::now(), warm_up + seconds);
        let end = start + Duration::from_secs_f64(until);
        let (_, looks) = observe(generator.engine, (start, warm_up, STEP), || {
            generator.saturate(mix.requests(0), tokens, end)
        })?;
        let devices: Vec<DeviceRate> = work(&looks, until)
            .into_iter()
            .map(|work| DeviceRate {
                // Not the tokens of the batches that ended in time: a slow device ends few.
                tokens_per_second: work.speed * work.share,
                name: work.name,
                busy_share: work.share,
                own_speed: work.speed,
            })
            .collect();
        let tokens_per_second = devices.iter().map(|device| device.tokens_per_second).sum();
        if tokens_per_second > 0.0 {
            Ok(Self { tokens_per_second, devices })
        } else {
            Err(AbError::NoAnswers { what: "the measurement of the capacity".into() })
        }
    }

    /// The sum of the devices' own speeds.
    pub(super) fn own_speeds(&self) -> f64 {
        self.devices.iter().map(|device| device.own_speed).sum()
    }
}

/// Measures each device with all others drained.
pub(super) fn interference(
    generator: &Generator<'_>,
    together: &SustainedRate,
    mut measure: impl FnMut(&str) -> Result<SustainedRate, AbError>,
) -> Result<Vec<Interference>, AbError> {
    let engine = generator.engine;
    let mut all = Vec::new();
    for (index, device) in together.devices.iter().enumerate() {
        let others = || together.devices.iter().filter(|other| other.name != device.name);
        others().for_each(|other| _ = engine.drain(&other.name));
        let capacity = measure(&device.name);
        others().for_each(|other| _ = engine.restore(&other.name));
        let alone = capacity?.devices[index].own_speed;
        let (name, together) = (device.name.clone(), device.own_speed);
        all.push(Interference { name, alone, together, factor: divided(together, alone) });
    }
    Ok(all)
}
