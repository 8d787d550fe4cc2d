//! What is kept of an experiment for others to work out what it should have shown.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vecmill_engine::{DeviceName, DeviceStatistics};
use vecmill_model::disk;

use super::figures::Figures;
use super::sustained_rate::SustainedRate;

/// The most of a record that is read.
const LIMIT: u64 = 1 << 30;

/// What a device takes at most.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceLimits {
    /// The device.
    pub name: String,
    /// Tokens of a batch.
    pub batch_tokens: usize,
    /// Batches before it has finished one.
    pub in_flight: usize,
}

impl From<(DeviceName, DeviceStatistics)> for DeviceLimits {
    fn from((name, device): (DeviceName, DeviceStatistics)) -> Self {
        let name = name.to_string();
        Self { name, batch_tokens: device.batch_tokens, in_flight: device.in_flight }
    }
}

/// The requests of a pass.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Requests {
    /// `None` if they came all at once.
    pub per_second: Option<f64>,
    /// The part of made ones that have many inputs, and the most tokens of an input.
    pub large: f64,
    /// The most tokens of an input.
    pub longest: usize,
    /// Whether they were not made.
    pub of_trace: bool,
}

/// An experiment as its file tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    /// The arms.
    pub policies: Vec<String>,
    /// What requests were made from.
    pub seed: u64,
    /// What of each pass was dropped.
    pub warm_up_seconds: f64,
    /// What the devices could do, where that was measured.
    pub capacity: Option<SustainedRate>,
    /// The passes in their order.
    pub passes: Vec<Figures>,
    /// What files of earlier versions don't have.
    #[serde(flatten)]
    pub made_of: Option<MadeOf>,
}

/// What an experiment was made of.
#[derive(Debug, Clone, Deserialize)]
pub struct MadeOf {
    /// How long answers were waited for beyond the last request.
    pub drain_seconds: f64,
    /// The requests of each pass.
    pub requests: Requests,
    /// The devices, in the order of the engine.
    pub devices: Vec<DeviceLimits>,
}

/// Why a file of an experiment can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The system has not given it.
    #[error("it can't be read: {0}")]
    Read(#[from] io::Error),
    /// It is of something else.
    #[error("expected the figures of vecmill ab --json: {0}")]
    Json(#[from] serde_json::Error),
    /// A policy that it names was never tried.
    #[error("it has no passes of {0}: expected some of each policy")]
    NoPasses(String),
    /// Its passes are not of the same devices.
    #[error("expected as many devices in each pass, found {found} beside {expected}")]
    Devices {
        /// Those of the first pass.
        expected: usize,
        /// Those of another.
        found: usize,
    },
}

impl Record {
    /// Reads what `vecmill ab --json` has written.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct File {
            figures: Record,
        }
        let File { figures: record } = serde_json::from_slice(&disk::read_regular(path, LIMIT)?)?;
        for policy in &record.policies {
            if record.passes_of(policy).next().is_none() {
                return Err(RecordError::NoPasses(policy.clone()));
            }
        }
        let devices = |pass: &Figures| pass.devices.len();
        let expected = record.passes.first().map_or(0, devices);
        match record.passes.iter().map(devices).find(|&found| found != expected) {
            Some(found) => Err(RecordError::Devices { expected, found }),
            None => Ok(record),
        }
    }

    /// The passes of a policy.
    pub fn passes_of(&self, policy: &str) -> impl Iterator<Item = &Figures> {
        self.passes.iter().filter(move |pass| pass.policy == policy)
    }
}
