//! How many tokens a batch may have.
//!
//! - [`budget_for`]: by the memory that is ready.
//! - [`knee`]: by how a device's speed grows with the batch.

use std::time::Duration;

use crate::job::whole;
use crate::speed::Coefficients;

/// The part of a device's full speed from which larger batches hardly pay.
const NEARLY_FULL: f64 = 0.95;

/// The token budget of the next batch: `warm`, what fits the memory that a device has ready, where
/// that costs nothing, and `limit`, the most that it takes, everywhere else.
///
/// It costs nothing when the `backlog` needs as many batches either way: batches of even size then
/// take the place of full ones and a small last one, and nobody waits for memory. A backlog of one
/// batch is never split.
///
/// ```
/// use vecmill_scheduler::budget_for;
///
/// assert_eq!(budget_for(5_000, 4_096, 3_000), 3_000); // two batches, either way
/// assert_eq!(budget_for(8_000, 4_096, 3_000), 4_096); // two batches, but three of 3,000
/// assert_eq!(budget_for(2_000, 4_096, 1_000), 4_096); // one batch
/// ```
pub fn budget_for(backlog: usize, limit: usize, warm: usize) -> usize {
    if warm == 0 || warm >= limit || backlog.div_ceil(warm) != backlog.div_ceil(limit) {
        return limit;
    }
    warm
}

/// The tokens of a device's batches, of inputs of a length: so many that its speed is nearly full,
/// larger ones would only take longer; fewer if such a batch would take longer than `bound`. At least
/// `least`, for the longest input to fit, and at most `most`, for memory.
///
/// ```
/// use std::time::Duration;
/// use vecmill_scheduler::{Coefficients, knee};
///
/// let gpu = Coefficients { fixed: 0.001, per_token: 1e-6, per_square: 0.0 };
/// assert_eq!(knee(&gpu, 64.0, Duration::from_millis(100), 512, 65_536), 19_000);
/// assert_eq!(knee(&gpu, 64.0, Duration::from_millis(11), 512, 65_536), 10_000);
/// ```
pub fn knee(
    model: &Coefficients,
    length: f64,
    bound: Duration,
    least: usize,
    most: usize,
) -> usize {
    let each = model.marginal(length).max(f64::MIN_POSITIVE);
    let knee = NEARLY_FULL / (1.0 - NEARLY_FULL) * model.fixed / each;
    let in_time = (bound.as_secs_f64() - model.fixed) / each;
    whole(knee.min(in_time).round()).max(least).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_device_without_fixed_cost_takes_the_least_and_a_slow_one_too() {
        let model = Coefficients { fixed: 0.0, per_token: 1e-6, per_square: 0.0 };
        assert_eq!(knee(&model, 64.0, Duration::from_secs(1), 512, 16_384), 512);
        let slow = Coefficients { fixed: 1.0, per_token: 1e-3, per_square: 0.0 };
        assert_eq!(knee(&slow, 64.0, Duration::from_millis(10), 512, 16_384), 512);
        let endless = Coefficients { fixed: 1.0, ..Coefficients::default() };
        assert_eq!(knee(&endless, 64.0, Duration::from_secs(9), 512, 16_384), 16_384);
    }

    #[test]
    fn memory_that_is_not_there_changes_nothing() {
        assert_eq!(budget_for(10_000, 4_096, 0), 4_096);
        assert_eq!(budget_for(10_000, 4_096, 5_000), 4_096);
        assert_eq!(budget_for(0, 4_096, 100), 100, "nothing waits: nothing is split");
    }

    proptest! {
        #[test]
        fn the_number_of_batches_never_rises(
            backlog in 1usize..100_000, limit in 1usize..20_000, warm in 0usize..30_000,
        ) {
            let budget = budget_for(backlog, limit, warm);
            prop_assert!(budget == limit || budget == warm && warm < limit);
            prop_assert_eq!(backlog.div_ceil(budget), backlog.div_ceil(limit));
        }
    }
}
