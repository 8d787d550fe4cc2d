//! From which end the rows of a batch are passed over.

use std::sync::atomic::{AtomicBool, Ordering};

/// The direction of the last pass. Each pass that can begins where the last one ended: what that one
/// wrote last is still in the second-level cache. Results don't depend on it.
#[derive(Debug, Default)]
pub(crate) struct RowOrder {
    backwards: AtomicBool,
}

impl RowOrder {
    /// Whether a pass that can go either way goes backwards.
    pub(crate) fn turn(&self) -> bool {
        !self.backwards.fetch_not(Ordering::Relaxed)
    }

    /// A pass that can only go forwards.
    pub(crate) fn forwards(&self) {
        self.backwards.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_begin_where_the_last_one_ended() {
        let row_order = RowOrder::default();
        assert_eq!([row_order.turn(), row_order.turn(), row_order.turn()], [true, false, true]);
        row_order.forwards();
        assert!(row_order.turn());
    }
}
