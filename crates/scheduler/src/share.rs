//! Which class a device takes from: its turn before the policy's.
//!
//! Classes for which somebody waits go before those of bulk work alone, unless that has waited long.
//! Among equals, the one goes first that has had the fewest device-seconds by its weight.
//!
//! The choices behind it:
//!
//! - Time is what is shared, not tokens or batches: a class of a slow model is not to get more of the
//!   devices for being slow. It is counted as believed when a batch is taken, and as measured when it
//!   is done, so that batches under way count too.
//! - A second of a device counts by what it does in one, relative to the class's fastest device: a second
//!   of a processor is not worth one of a GPU. Counted alike, a class that was left the processor seemed
//!   to have had its part.
//! - Who had nothing to do has no claim to what others used meanwhile: a class that gets work begins
//!   with what the busy class that had least has had (start-time fair queueing, P. Goyal, H. Vin and
//!   H. Cheng, 1996, with the least of the busy classes as the virtual time).
//! - A class whose policy leaves its work to another device makes way for the next one: no device
//!   idles for fairness. But only when the device is nearly done with what it runs: so long it may
//!   change its mind.
//! - A policy that plans ahead is not told that a device's time is shared. Scaling rates by a class's
//!   part was tried in simulation: it changed little on equal devices, and sent work to slow ones that
//!   fast ones would have had done sooner (`benchmarks/results/2026-11-30-scheduler-classes.md`).
//! - With one class nothing of this is looked at.

use crate::job::ClassId;
use crate::scheduler::Scheduler;

impl<T> Scheduler<T> {
    /// Puts the classes that a device serves into `order`, whose turn it is first.
    pub(crate) fn order_classes(&self, now: f64, device: usize, order: &mut Vec<ClassId>) {
        order.clear();
        let serves = |class: &ClassId| self.classes[class.0].members[device].serves;
        order.extend((0..self.classes.len()).map(ClassId).filter(serves));
        if order.len() > 1 {
            let aged = now - self.settings.bulk_age.as_secs_f64();
            let key = |class: &ClassId| {
                let record = &self.classes[class.0];
                let assigned = &record.members[device].assigned;
                let waits =
                    record.retries || record.common.is_urgent(aged) || assigned.is_urgent(aged);
                (!waits, record.received)
            };
            order.sort_by(|a, b| {
                let (a, b) = (key(a), key(b));
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
        }
    }

    /// From now on a class gets devices' time in proportion to this, which is above 0, while others have
    /// work.
    pub fn set_weight(&mut self, class: ClassId, weight: f64) {
        if weight.is_finite() && weight > 0.0 {
            self.classes[class.0].weight = weight;
        }
    }

    /// A class is about to get work.
    pub(crate) fn enter(&mut self, class: ClassId) {
        if self.classes.len() > 1 && !self.is_busy(class) {
            let record = &mut self.classes[class.0];
            record.received = record.received.max(self.virtual_time);
        }
    }

    /// A class has had so many seconds more of a device.
    pub(crate) fn charge(&mut self, class: ClassId, device: usize, seconds: f64) {
        let several = self.classes.len() > 1;
        let record = &mut self.classes[class.0];
        record.had += seconds;
        if several {
            let worth = seconds * record.rates().worth(device);
            record.worth += worth;
            record.received += worth / record.weight;
            let busy = (0..self.classes.len()).filter(|&index| self.is_busy(ClassId(index)));
            let least = busy.map(|index| self.classes[index].received).min_by(f64::total_cmp);
            self.virtual_time = self.virtual_time.max(least.unwrap_or_default());
        }
    }

    fn is_busy(&self, class: ClassId) -> bool {
        let record = &self.classes[class.0];
        record.running > 0 || !record.common.is_empty() || record.backlog().0 > 0
    }
}
