//! What the memory that a device has ready has to say about how large its next batch is.

use std::time::Duration;

use crate::job::ClassId;
use crate::scheduler::Scheduler;

/// What a device has ready for a class: how many tokens fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warm {
    /// The class that these are tokens of.
    pub class: ClassId,
    /// Tokens that fit the memory that is ready.
    pub tokens: usize,
}

impl<T> Scheduler<T> {
    /// Whether more of the class whose turn it is waits for a device than one batch takes.
    pub fn backlogged(&mut self, now: Duration, device: usize) -> Option<ClassId> {
        let mut order = std::mem::take(&mut self.order);
        self.order_classes(now.as_secs_f64(), device, &mut order);
        let class = order.first().copied();
        self.order = order;
        class.filter(|class| {
            let record = &self.classes[class.0];
            let member = &record.members[device];
            member.assigned.tokens().max(record.common.tokens()) > member.batch_tokens
        })
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
