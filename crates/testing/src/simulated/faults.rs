//! What goes wrong on purpose.
//!
//! [`Fault`] is what a test asks for; `Faults` keeps those that are waiting and says of each call
//! whether it fails.

use super::DriverCall;
use vecmill_memory::Cause;

/// Something that goes wrong, for [`SimulatedDevice::inject`](super::SimulatedDevice::inject).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// One call fails.
    Nth {
        /// How many calls of the kind succeed before: 0 fails the next one.
        n: u64,
        /// The kind of call; `None` counts calls of every kind.
        of: Option<DriverCall>,
        /// What the failure is. [`Cause::Lost`] takes the device with it.
        cause: Cause,
    },
    /// Every call fails until [`clear_faults`](super::SimulatedDevice::clear_faults).
    Every {
        /// The kind of call; `None` is every kind.
        of: Option<DriverCall>,
        /// What the failure is. [`Cause::Lost`] takes the device with it.
        cause: Cause,
    },
    /// Events that are recorded from now on pass later than the work before them.
    SlowEvents {
        /// Nanoseconds between the end of the work and the passing of the event.
        delay: u64,
    },
    /// Every call fails with [`Cause::Lost`] until [`revive`](super::SimulatedDevice::revive). Work
    /// that was queued never runs.
    Lost,
}

/// Faults that have been asked for.
#[derive(Debug, Default)]
pub(super) struct Faults {
    waiting: Vec<Fault>,
    delay: u64,
    lost: bool,
}

impl Faults {
    pub(super) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Nth { .. } | Fault::Every { .. } => self.waiting.push(fault),
            Fault::SlowEvents { delay } => self.delay = delay,
            Fault::Lost => self.lost = true,
        }
    }

    /// Forgets all faults, but a lost device stays lost.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.delay = 0;
    }

    pub(super) fn revive(&mut self) {
        self.lost = false;
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Nanoseconds that events pass late.
    pub(super) fn delay(&self) -> u64 {
        self.delay
    }

    /// Counts a call, and says why it fails if it does.
    pub(super) fn strike(&mut self, call: DriverCall) -> Option<Cause> {
        let mut struck = None;
        self.waiting.retain_mut(|fault| match fault {
            Fault::Nth { n, of, cause } if of.is_none_or(|kind| kind == call) => {
                let due = *n == 0;
                if due {
                    struck.get_or_insert(*cause);
                }
                *n = n.saturating_sub(1);
                !due
            }
            Fault::Every { of, cause } if of.is_none_or(|kind| kind == call) => {
                struck.get_or_insert(*cause);
                true
            }
            _ => true,
        });
        self.lost |= struck == Some(Cause::Lost);
        if self.lost { Some(Cause::Lost) } else { struck }
    }
}

#[cfg(test)]
mod tests;
