//! Whether a device gets work: its [`Health`], and the [`Condition`] that follows from what happens to it.

/// Batches that a device may fail at, one after the other, before it is taken out.
const FAILURES_IN_A_ROW: u32 = 3;

/// Seconds until a device that was taken out is tried again: the first time, and at most.
const FIRST_PAUSE: f64 = 1.0;
const LONGEST_PAUSE: f64 = 60.0;

/// How a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It gets work.
    Serving,
    /// It failed at its last batch and gets one at a time until one succeeds.
    Suspect,
    /// It kept failing or doesn't move: its work is done elsewhere. After a while it is tried with one
    /// batch.
    Out,
    /// An operator wants it idle; it finishes what it has begun.
    Draining,
    /// Idle, until an operator wants it back.
    Drained,
    /// Whoever asked for its work has ended: it gets none for good.
    Gone,
}

impl Health {
    /// A name for metrics and pages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Suspect => "suspect",
            Self::Out => "out",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Gone => "gone",
        }
    }
}

/// A device's health and what it follows from. Times are in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    health: Health,
    failures: u32,
    pause: f64,
    try_at: f64,
}

impl Condition {
    pub(crate) fn new() -> Self {
        Self { health: Health::Serving, failures: 0, pause: FIRST_PAUSE, try_at: 0.0 }
    }

    pub(crate) fn health(&self) -> Health {
        self.health
    }

    /// Whether others can rely on it for work that waits.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.health, Health::Serving | Health::Suspect)
    }

    /// Whether an operator wants it idle.
    pub(crate) fn is_drained(&self) -> bool {
        matches!(self.health, Health::Draining | Health::Drained)
    }

    /// Whether it will never serve again.
    pub(crate) fn is_gone(&self) -> bool {
        self.health == Health::Gone
    }

    /// When it may be tried again, if it is out.
    pub(crate) fn try_at(&self) -> Option<f64> {
        (self.health == Health::Out).then_some(self.try_at)
    }

    /// It ran a batch.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        if !self.is_drained() && !self.is_gone() {
            self.health = Health::Serving;
            self.pause = FIRST_PAUSE;
        }
    }

    /// It failed at a batch. Says whether that takes it out; it doesn't where no other could do its
    /// work.
    pub(crate) fn failed(&mut self, now: f64, others_serve: bool) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.is_drained() || self.is_gone() {
            return false;
        }
        let was_out = self.health == Health::Out;
        if was_out || others_serve && self.failures >= FAILURES_IN_A_ROW {
            self.take_out(now);
            return !was_out;
        }
        self.health = Health::Suspect;
        false
    }

    /// It gets no work for a while.
    pub(crate) fn take_out(&mut self, now: f64) {
        self.health = Health::Out;
        self.try_at = now + self.pause;
        self.pause = (2.0 * self.pause).min(LONGEST_PAUSE);
    }

    pub(crate) fn drain(&mut self, idle: bool) {
        if !self.is_gone() {
            self.health = if idle { Health::Drained } else { Health::Draining };
        }
    }

    /// It is lost for good.
    pub(crate) fn lose(&mut self) {
        self.health = Health::Gone;
    }

    /// Its last batch is done.
    pub(crate) fn became_idle(&mut self) {
        if self.health == Health::Draining {
            self.health = Health::Drained;
        }
    }

    pub(crate) fn restore(&mut self) {
        if !self.is_gone() {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_take_it_out_and_one_success_brings_it_back() {
        let mut condition = Condition::new();
        assert!(!condition.failed(0.0, true));
        assert_eq!(condition.health(), Health::Suspect);
        condition.succeeded();
        assert!(!condition.failed(0.0, true) && !condition.failed(0.0, true));
        assert!(condition.failed(10.0, true));
        assert_eq!((condition.health(), condition.try_at()), (Health::Out, Some(11.0)));
        assert!(!condition.failed(11.0, true), "it was out already");
        assert_eq!(condition.try_at(), Some(13.0), "the pause doubles");
        condition.succeeded();
        assert_eq!((condition.health(), condition.try_at()), (Health::Serving, None));
        assert!((0..2).all(|_| !condition.failed(20.0, true)) && condition.failed(20.0, true));
        assert_eq!(condition.try_at(), Some(21.0), "the pause starts anew");
    }

    #[test]
    fn the_last_one_stays_and_what_is_drained_stays_drained() {
        let mut condition = Condition::new();
        assert!((0..9).all(|_| !condition.failed(0.0, false)));
        assert!(condition.serves());
        condition.drain(false);
        condition.succeeded();
        assert!(!condition.failed(0.0, true));
        assert_eq!(condition.health(), Health::Draining);
        condition.became_idle();
        assert_eq!(condition.health(), Health::Drained);
        condition.restore();
        assert_eq!(condition.health(), Health::Serving);
    }

    #[test]
    fn what_is_gone_stays_gone() {
        let mut condition = Condition::new();
        condition.lose();
        condition.succeeded();
        assert!(!condition.failed(0.0, true) && !condition.serves());
        condition.drain(true);
        condition.restore();
        assert_eq!(condition.health(), Health::Gone);
    }
}
