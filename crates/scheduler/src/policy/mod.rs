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
    pub share: f64,
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

/// When devices that share so many tokens are done with them, if each takes what it can do by then;
/// infinite if none serves.
///
/// What is done by a time grows in straight pieces, so that Newton's method, kept between what is too
/// early and what is too late, ends after a few steps.
pub fn level(devices: &[View], tokens: f64) -> f64 {
    level_near(devices, tokens, 0.0)
}

/// The same, sooner found if it is near a guess.
fn level_near(devices: &[View], tokens: f64, guess: f64) -> f64 {
    let serving = || devices.iter().filter(|view| view.serves);
    let begin = serving().map(|view| view.free_in + view.fixed).fold(f64::INFINITY, f64::min);
    let (mut early, mut late, mut time) = (begin, f64::INFINITY, begin.max(guess));
    for _ in 0..STEPS {
        let (mut done, mut rate) = (0.0, 0.0);
        for view in serving() {
            let (tokens, each) = view.pace(time);
            done += tokens;
            rate += each;
        }
        let lacking = tokens - done;
        if lacking.abs() < ENOUGH || rate == 0.0 {
            break;
        }
        if lacking > 0.0 {
            early = time;
        } else {
            late = time;
        }
        let next = time + lacking / rate;
        time = if next > early && next < late { next } else { f64::midpoint(early, late) };
    }
    time
}

/// Steps by which a level is come closer to, and tokens that make no difference.
const STEPS: usize = 40;
const ENOUGH: f64 = 0.1;

/// Tokens by which the beginning of a device's first one may be missed.
const ROUNDING: f64 = 1e-3;

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
    fn look(&mut self, backlog: usize, devices: &[View]) {
        let _ = (backlog, devices);
    }

    /// What a device that serves and has room gets of the backlog that was looked at, which is above 0.
    fn take(&mut self, device: usize, devices: &[View]) -> Take {
        Take::Batch { skip: 0, tokens: devices[device].limit }
    }
}

type Make = fn() -> Box<dyn Policy>;

/// All of them, the default first.
const POLICIES: [(&str, Make); 4] = [
    (EarliestFinish::NAME, || Box::new(EarliestFinish::default())),
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

/// Which of so many policies is on turn when they are compared: A B B A A B …, every second time
/// backwards, so that what drifts evenly adds the same to all.
pub fn on_turn(turn: usize, policies: usize) -> usize {
    let policies = policies.max(1);
    let place = turn % policies;
    if (turn / policies).is_multiple_of(2) { place } else { policies - 1 - place }
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
        share: 1.0,
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
    fn policies_take_turns_forth_and_back_so_that_an_even_drift_is_the_same_for_all() {
        let turns = |policies| (0..4 * policies).map(move |turn| on_turn(turn, policies));
        assert_eq!(turns(2).collect::<Vec<_>>(), [0, 1, 1, 0, 0, 1, 1, 0]);
        assert_eq!(turns(3).collect::<Vec<_>>(), [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0]);
        for policies in 1..5 {
            let mut sums = vec![0; policies];
            turns(policies).enumerate().for_each(|(place, policy)| sums[policy] += place);
            assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        }
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
