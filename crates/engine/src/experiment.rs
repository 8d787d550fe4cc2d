//! Policies that take turns in a running engine, and what each of them achieved.
//!
//! - [`Experiment`] is on turn for one policy after the other, in the order A B B A, so that a load
//!   that rises or falls steadily favours none. It counts for each what was answered, how long that
//!   took and how busy the devices were.
//!
//! The choice behind it: the beginning of a turn, and requests that saw more than one policy, count
//! for none. What is told are plain sums and histograms: whoever reads the metrics compares them.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use vecmill_scheduler::policy::{PolicyName, on_turn};

use crate::info::DeviceName;
use crate::request::Reply;

/// The part of a turn that counts for nobody: what waits was dealt out by the policy before.
const SETTLING: f64 = 0.1;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Arm {
    policy: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ArmDevice {
    policy: String,
    device: Arc<str>,
}

type Seconds = Counter<f64, AtomicU64>;

/// Policies that take turns.
pub(crate) struct Experiment {
    policies: Vec<PolicyName>,
    window: Duration,
    began: Instant,
    requests: Family<Arm, Counter>,
    tokens: Family<Arm, Counter>,
    duration: Family<Arm, Histogram>,
    queue: Family<Arm, Histogram>,
    active: Family<Arm, Seconds>,
    busy: Family<ArmDevice, Seconds>,
    /// When the devices were last looked at, and how busy each had been.
    looked: Mutex<(Instant, HashMap<DeviceName, Duration>)>,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    number: usize,
    /// Index of the policy.
    arm: usize,
    /// Whether what happens counts.
    settled: bool,
}

impl fmt::Debug for Experiment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Experiment").field("policies", &self.policies).finish_non_exhaustive()
    }
}

impl Experiment {
    /// Turns of `window` for each of `policies`.
    pub(crate) fn new(
        policies: Vec<PolicyName>,
        window: Duration,
        histogram: fn() -> Histogram,
    ) -> Self {
        let now = Instant::now();
        Self {
            policies,
            window,
            began: now,
            requests: Family::default(),
            tokens: Family::default(),
            duration: Family::new_with_constructor(histogram),
            queue: Family::new_with_constructor(histogram),
            active: Family::default(),
            busy: Family::default(),
            looked: Mutex::new((now, HashMap::new())),
        }
    }

    #[rustfmt::skip] // one metric, one line
    pub(crate) fn register(&self, r: &mut Registry) {
        r.register("experiment_requests", "Requests answered with vectors while a policy was on turn", self.requests.clone());
        r.register("experiment_tokens", "Tokens embedded while a policy was on turn", self.tokens.clone());
        r.register_with_unit("experiment_request_duration", "From a request's call to its answer, by the policy on turn", Unit::Seconds, self.duration.clone());
        r.register_with_unit("experiment_queue_duration", "The longest wait of a request's inputs for a device, by the policy on turn", Unit::Seconds, self.queue.clone());
        r.register_with_unit("experiment_active", "How long a policy has been on turn, beginnings of turns excluded", Unit::Seconds, self.active.clone());
        r.register_with_unit("experiment_device_busy", "Time that a device took for batches while a policy was on turn", Unit::Seconds, self.busy.clone());
    }

    /// Whose turn it is now.
    pub(crate) fn turn(&self) -> Turn {
        turn(self.began.elapsed().as_secs_f64() / self.window.as_secs_f64(), self.policies.len())
    }

    /// The policy of a turn.
    pub(crate) fn policy(&self, turn: Turn) -> PolicyName {
        self.policies[turn.arm]
    }

    /// A request that was asked at `asked` has been answered.
    pub(crate) fn answered(&self, asked: Turn, reply: &Reply, took: Duration) {
        if !asked.settled || asked != self.turn() {
            return;
        }
        let arm = self.arm(asked);
        self.requests.get_or_create(&arm).inc();
        self.tokens.get_or_create(&arm).inc_by(reply.tokens() as u64);
        self.duration.get_or_create(&arm).observe(took.as_secs_f64());
        self.queue.get_or_create(&arm).observe(reply.timings.queue.as_secs_f64());
    }

    /// So busy the devices have been so far.
    pub(crate) fn look(&self, devices: impl IntoIterator<Item = (DeviceName, Duration)>) {
        let (turn, now) = (self.turn(), Instant::now());
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, known) = &mut *looked;
        let passed = now.saturating_duration_since(*before);
        *before = now;
        if turn.settled {
            self.active.get_or_create(&self.arm(turn)).inc_by(passed.as_secs_f64());
        }
        for (device, busy) in devices {
            let earlier = known.insert(device.clone(), busy).unwrap_or(busy);
            if turn.settled {
                let label =
                    ArmDevice { policy: self.policy(turn).to_string(), device: device.shared() };
                let more = busy.saturating_sub(earlier);
                self.busy.get_or_create(&label).inc_by(more.as_secs_f64());
            }
        }
    }

    fn arm(&self, turn: Turn) -> Arm {
        Arm { policy: self.policy(turn).to_string() }
    }
}

/// Whose turn it is of `arms` after so many windows.
fn turn(windows: f64, arms: usize) -> Turn {
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a count from 0")]
    let number = windows as usize;
    Turn { number, arm: on_turn(number, arms), settled: windows.fract() >= SETTLING }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_is_a_turn() {
        let arms: Vec<usize> = (0..4).map(|n| turn(f64::from(n) + 0.5, 2).arm).collect();
        assert_eq!(arms, [0, 1, 1, 0]);
    }

    #[test]
    fn beginnings_do_not_count_and_turns_of_one_policy_are_told_apart() {
        assert!(!turn(1.05, 2).settled && turn(1.15, 2).settled);
        let (first, second) = (turn(1.5, 2), turn(2.5, 2));
        assert_eq!(first.arm, second.arm);
        assert_ne!(first, second);
    }
}
