//! How far a replay is.

use super::{Manager, Placed, Refused, Usage};
use indicatif::ProgressBar;

/// Calls between two looks at the bar: so many that what is measured does not notice.
const STEP: u64 = 4096;

/// A manager that moves a bar.
pub(super) struct Counted<'m> {
    manager: Box<dyn Manager + 'm>,
    bar: ProgressBar,
    calls: u64,
}

impl<'m> Counted<'m> {
    pub(super) fn new(manager: Box<dyn Manager + 'm>, bar: ProgressBar) -> Self {
        Self { manager, bar, calls: 0 }
    }

    fn count(&mut self) {
        self.calls += 1;
        if self.calls.is_multiple_of(STEP) {
            self.bar.inc(STEP);
        }
    }
}

impl Manager for Counted<'_> {
    fn name(&self) -> &str {
        self.manager.name()
    }

    fn lease(
        &mut self,
        id: u64,
        stream: u32,
        bytes: usize,
        nanoseconds: u64,
    ) -> Result<(), Refused> {
        self.count();
        self.manager.lease(id, stream, bytes, nanoseconds)
    }

    fn give_back(&mut self, id: u64, nanoseconds: u64) {
        self.count();
        self.manager.give_back(id, nanoseconds);
    }

    fn tick(&mut self, nanoseconds: u64) {
        self.manager.tick(nanoseconds);
    }

    fn usage(&self) -> Usage {
        self.manager.usage()
    }

    fn blocks(&self) -> Vec<Placed> {
        self.manager.blocks()
    }

    fn driver_calls(&self) -> Vec<(&'static str, u64)> {
        self.manager.driver_calls()
    }
}
