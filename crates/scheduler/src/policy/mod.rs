//! Who gets which work, by name.
//!
//! A policy either assigns requests to devices when they arrive, as services that have several
//! devices usually do, or leaves them in the common backlog and decides when a device asks. To add
//! one, write its file and add its line to `POLICIES`.

mod earliest_finish;
mod least_loaded;
mod round_robin;
mod weighted;

use std::fmt;

pub use earliest_finish::EarliestFinish;
pub use least_loaded::LeastLoaded;
pub use round_robin::RoundRobin;
pub use weighted::Weighted;

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
    pub weight: f64,
    /// Batches that others have run since its speed was measured; the most while that is not known for
    /// sure.
    pub unmeasured: u64,
}

impl View {
    /// When a batch of so many tokens would be done if it were taken now.
    pub fn finish(&self, tokens: f64) -> f64 {
        self.free_in + self.fixed + self.per_token * tokens
    }

    /// The tokens of waiting work that it could have done by then: in one batch, or in full ones.
    pub fn tokens_by(&self, time: f64) -> f64 {
        let first = (time - self.free_in - self.fixed) / self.per_token;
        if first <= self.limit as f64 {
            return first.max(0.0);
        }
        (time - self.free_in) / self.slope
    }
}

/// When devices that share so many tokens are done with them, if each takes what it can do by then;
/// infinite if none serves.
pub fn level(devices: &[View], tokens: f64) -> f64 {
    let done = |time: f64| -> f64 {
        devices.iter().filter(|view| view.serves).map(|view| view.tokens_by(time)).sum()
    };
    // Without fixed costs of first batches it would be lower, which makes no difference if all do
    // several; with these costs twice it would be higher.
    let mut low = fluid_level(devices, tokens, |view| view.free_in);
    if !low.is_finite() {
        return low;
    }
    let mut lacking = tokens - done(low);
    if lacking < ENOUGH {
        return low;
    }
    let mut high = fluid_level(devices, tokens, |view| view.free_in + view.fixed);
    let mut over = done(high) - tokens;
    // By false position (a variant of Illinois): what is done grows in straight pieces.
    for _ in 0..CLOSER {
        if over < ENOUGH {
            return high;
        }
        let time = low + (high - low) * lacking / (lacking + over);
        let more = done(time) - tokens;
        if more < -ENOUGH {
            (low, lacking, over) = (time, -more, over / 2.0);
        } else {
            (high, over, lacking) = (time, more, lacking / 2.0);
        }
    }
    high
}

/// Steps by which a level is come closer to, and tokens that make no difference.
const CLOSER: usize = 16;
const ENOUGH: f64 = 0.1;

/// The level if each device did its tokens at an even pace, from its beginning on.
fn fluid_level(devices: &[View], tokens: f64, begin: impl Fn(&View) -> f64) -> f64 {
    let mut level = f64::INFINITY;
    loop {
        let (mut rate, mut before) = (0.0, 0.0);
        for device in devices.iter().filter(|device| device.serves) {
            let begin = begin(device);
            if begin <= level {
                let each = 1.0 / device.slope;
                rate += each;
                before += begin * each;
            }
        }
        // Without those that begin only after the level, it falls; until no more of them do.
        let next = if rate > 0.0 { (tokens + before) / rate } else { return f64::INFINITY };
        if next >= level {
            return level;
        }
        level = next;
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
    fn name(&self) -> &'static str;

    /// Whether it assigns requests when they arrive.
    fn assigns(&self) -> bool {
        false
    }

    /// The device that a request is assigned to. At least one serves.
    fn assign(&mut self, devices: &[View]) -> usize {
        devices.iter().position(|device| device.serves).unwrap_or(0)
    }

    /// What a device that serves and has room gets of the `backlog`, in tokens, which is above 0.
    fn take(&mut self, device: usize, backlog: usize, devices: &[View]) -> Take {
        let _ = backlog;
        Take::Batch { skip: 0, tokens: devices[device].limit }
    }
}

type Make = fn() -> Box<dyn Policy>;

/// All of them, the default first.
const POLICIES: [(&str, Make); 4] = [
    (EarliestFinish::NAME, || Box::new(EarliestFinish)),
    (Weighted::NAME, || Box::new(Weighted::default())),
    (LeastLoaded::NAME, || Box::new(LeastLoaded)),
    (RoundRobin::NAME, || Box::new(RoundRobin::default())),
];

/// The names of all policies, the default first.
pub fn names() -> impl Iterator<Item = &'static str> {
    POLICIES.iter().map(|(name, _)| *name)
}

/// A policy by its name.
///
/// # Errors
/// [`UnknownPolicy`] if there is none of that name.
pub fn by_name(name: &str) -> Result<Box<dyn Policy>, UnknownPolicy> {
    let found = POLICIES.iter().find(|(known, _)| *known == name);
    found.map(|(_, make)| make()).ok_or_else(|| UnknownPolicy(name.to_owned()))
}

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy `{0}`, only {names}", names = names().collect::<Vec<_>>().join(", "))]
pub struct UnknownPolicy(pub String);

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
        weight: 1.0,
        unmeasured: 0,
    };

    #[test]
    fn names_lead_to_policies_of_that_name() {
        for name in names() {
            assert_eq!(by_name(name).unwrap().name(), name);
        }
        let error = by_name("random").unwrap_err().to_string();
        assert!(error.contains("`random`") && error.contains("earliest-finish"), "{error}");
    }

    #[test]
    fn the_level_is_where_all_that_take_part_are_done() {
        let busy = View { free_in: 10.0, ..IDLE };
        let out = View { serves: false, ..IDLE };
        let alone = level(&[IDLE, busy, out], 1000.0);
        assert_eq!(alone, level(&[IDLE], 1000.0), "who begins later takes no part");
        assert!((IDLE.tokens_by(alone) - 1000.0).abs() < 1.0);
        let slow = View { per_token: 4e-6, slope: 5e-6, ..IDLE };
        for tokens in [1.0, 300.0, 1e3, 2e3, 1e6] {
            let both = level(&[IDLE, slow], tokens);
            let done = IDLE.tokens_by(both) + slow.tokens_by(both);
            assert!((done - tokens).abs() < 1.0, "{done} instead of {tokens}");
        }
        assert_eq!(level(&[out], 1.0), f64::INFINITY);
    }
}
