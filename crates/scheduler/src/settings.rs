//! What a scheduler goes by, and what it is told of a device at first.

use std::time::Duration;

use crate::speed::Speed;

/// What a scheduler goes by.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Inputs that may be admitted and not answered.
    pub capacity: usize,
    /// Bulk work that has waited so long no longer stands behind interactive work.
    pub bulk_age: Duration,
    /// A batch that takes so many times what it should counts as stalled…
    pub stall_factor: f64,
    /// …if it takes so much more beside that.
    pub stall_floor: Duration,
    /// The same for the only device that serves: without it nothing does.
    pub stall_floor_alone: Duration,
    /// So long what was accepted waits while no device serves, for one to be restored; and so long what
    /// a device failed at waits for another one.
    pub no_device_patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 8192,
            bulk_age: Duration::from_secs(5),
            stall_factor: 10.0,
            stall_floor: Duration::from_secs(5),
            stall_floor_alone: Duration::from_secs(60),
            no_device_patience: Duration::from_secs(10),
        }
    }
}

/// A device as it starts, serving the first class.
#[derive(Debug, Clone)]
pub struct DeviceSettings {
    /// The most tokens of a batch.
    pub batch_tokens: usize,
    /// Batches that it has at most: the one that it runs and those that it has ready.
    pub in_flight: usize,
    /// What is known of its speed, from an earlier run or from warming it up.
    pub speed: Speed,
}
