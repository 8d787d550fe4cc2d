//! From which end the rows of a batch are passed over.

use std::sync::atomic::{AtomicBool, Ordering};

/// The direction of the last pass. Each pass that can begins where the last one ended: what that one
/// wrote last is still in the second-level cache. Results don't depend on it.
#[derive(Debug, Default)]
pub(crate) struct Sweeps {
    backwards: AtomicBool,
}

impl Sweeps {
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
        let sweeps = Sweeps::default();
        assert_eq!([sweeps.turn(), sweeps.turn(), sweeps.turn()], [true, false, true]);
        sweeps.forwards();
        assert!(sweeps.turn());
    }
}
