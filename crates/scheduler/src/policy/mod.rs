//! Who gets which work: what a policy sees, and what it decides.
//!
//! A policy either assigns requests to devices when they arrive, as services that have several
//! devices usually do, or leaves them in the common backlog and decides when a device asks. To add
//! one, write its file and add it to [`PolicyName`].

mod earliest_finish;
mod least_loaded;
mod level;
mod name;
mod round_robin;
mod weighted;

use std::fmt;

pub use earliest_finish::EarliestFinish;
pub use least_loaded::LeastLoaded;
pub use level::level;
pub use name::{PolicyName, UnknownPolicy, on_turn};
pub use round_robin::RoundRobin;
pub use weighted::Weighted;

/// Tokens by which the beginning of a device's first one may be missed.
const ROUNDING: f64 = 1e-3;

/// A device as policies see it. Times are in seconds from now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Whether it gets work.
    pub serves: bool,
    /// When it will be done with all that it has taken.
    pub free_in: f64,
    /// When it should be done with it; below 0 if it is late.
    pub due_in: f64,
    /// Batches that it has taken and not finished.
    pub running: usize,
    /// Tokens of these.
    pub running_tokens: usize,
    /// Tokens that were assigned to it and wait.
    pub assigned_tokens: usize,
    /// The most tokens of a batch.
    pub limit: usize,
    /// What a batch costs, however small.
    pub fixed: f64,
    /// What a token costs, in inputs as long as those of late.
    pub per_token: f64,
    /// What a token costs in full batches: their fixed cost is spread over it.
    pub slope: f64,
    /// Its share of all devices' tokens per second.
    pub share: f64,
    /// Batches that others have run since its speed was measured; the most while that is not known for
    /// sure.
    pub unmeasured: u64,
}

impl View {
    /// When the first token of a batch could be done, but for what it costs itself.
    fn begin(&self) -> f64 {
        self.free_in + self.fixed
    }

    /// When a batch of so many tokens would be done if it were taken now.
    pub fn finish(&self, tokens: f64) -> f64 {
        self.free_in + self.fixed + self.per_token * tokens
    }

    /// The tokens of waiting work that it could have done by then: in one batch, or in full ones.
    pub fn tokens_by(&self, time: f64) -> f64 {
        self.pace(time).0
    }

    /// These, and how many more each second makes them from then on.
    fn pace(&self, time: f64) -> (f64, f64) {
        let first = (time - self.free_in - self.fixed) / self.per_token;
        if first < -ROUNDING {
            (0.0, 0.0)
        } else if first <= self.limit as f64 {
            (first.max(0.0), 1.0 / self.per_token)
        } else {
            ((time - self.free_in) / self.slope, 1.0 / self.slope)
        }
    }
}

/// What a device that asks for work gets of the common backlog.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Take {
    /// A batch of up to so many tokens, behind those that are left to others. If the first group is
    /// small, it is taken whole even if it has more.
    Batch {
        /// Tokens at the front of the backlog that others will have done earlier.
        skip: usize,
        /// Tokens of the batch.
        tokens: usize,
    },
    /// Nothing until something happens, or so many seconds have passed.
    Wait {
        /// Infinite where only an event changes anything.
        seconds: f64,
    },
}

/// Decides who gets which work.
pub trait Policy: fmt::Debug + Send {
    /// What it is called.
    fn name(&self) -> PolicyName;

    /// One like it that has seen nothing yet: each class of work has its own.
    fn anew(&self) -> Box<dyn Policy>;

    /// Whether it assigns requests when they arrive.
    fn assigns(&self) -> bool {
        false
    }

    /// The device that a request is assigned to. At least one serves. Times and speeds are
    /// those of at most half a millisecond ago.
    fn assign(&mut self, devices: &[View]) -> usize {
        devices.iter().position(|device| device.serves).unwrap_or(0)
    }

    /// How much waits, in tokens, and how the devices stand: before any of them asks, and whenever
    /// that has changed.
    fn update(&mut self, backlog: usize, devices: &[View]) {
        let _ = (backlog, devices);
    }

    /// What a device that serves and has room gets of the backlog of the last update, which is above 0.
    fn take(&mut self, device: usize, devices: &[View]) -> Take {
        Take::Batch { skip: 0, tokens: devices[device].limit }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An idle device of full speed that serves.
    pub(crate) const IDLE: View = View {
        serves: true,
        free_in: 0.0,
        due_in: 0.0,
        running: 0,
        running_tokens: 0,
        assigned_tokens: 0,
        limit: 1000,
        fixed: 0.001,
        per_token: 1e-6,
        slope: 2e-6,
        share: 1.0,
        unmeasured: 0,
    };
}
