//! What an engine is doing before it can answer.

use std::time::Duration;

/// What is being done while an engine starts, or a model is converted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// A file is being fetched.
    Fetching {
        /// Its name.
        file: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, if known.
        total: Option<u64>,
    },
    /// The hub asked for patience, or something broke that may work when it is tried again.
    Waiting {
        /// What happened.
        reason: String,
        /// For how long.
        wait: Duration,
    },
    /// The weights are being laid out for the devices.
    Loading {
        /// Layers so far.
        done: usize,
        /// Layers in all.
        total: usize,
    },
    /// A device runs batches of practice.
    WarmingUp {
        /// The device.
        device: String,
        /// Sizes of batches so far.
        done: usize,
        /// Sizes in all.
        total: usize,
    },
    /// The weights are being written in another number format.
    Converting {
        /// Bytes so far, as they were stored.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Ready.
    Ready,
}
