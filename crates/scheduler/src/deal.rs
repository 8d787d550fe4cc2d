//! A device asks for work: whose turn it is (`share`), and then, of that class alone: whether it may have
//! some ([`Eligibility`]), from where, how much, and of what lengths. [`budget_for`] is what the memory
//! that is ready has to say.

use std::time::Duration;

use crate::backlog::{Backlog, Dropped, JobBatch, Lengths, Wish};
use crate::class::{ClassId, ClassRecord, Member};
use crate::device::Health;
use crate::job::{Job, float, whole};
use crate::policy::Take;
use crate::scheduler::Scheduler;
use crate::snapshot::LEAST_PAUSE;

/// What a device is to do that asked for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Run the batch.
    Batch,
    /// Ask again when something has happened, be it a request or whatever another device reports, and
    /// at the latest at this time.
    Wait {
        /// `None` where only an event changes anything.
        until: Option<Duration>,
    },
    /// Stop: everything is answered, and no more comes.
    Over,
}

/// How much better than others a device has to be at long inputs, or short ones, to be preferred.
const ADVANTAGE: f64 = 0.1;

/// A busy device passes a class over, whose turn it is and that leaves its work to others or to later,
/// only so many seconds before it is done with its batch. Were the place behind that batch given away
/// at once, a class of long batches could keep a device from one of short batches, or of few inputs.
const PASS_OVER: f64 = 0.001;

/// Batches after which a device's C is worth acting on.
const C_KNOWN: u64 = 50;

/// What a device has ready for a class: how many tokens fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warm {
    /// The class that these are tokens of.
    pub class: ClassId,
    /// Tokens that fit the memory that is ready.
    pub tokens: usize,
}

/// A device that asks, and when.
#[derive(Debug, Clone, Copy)]
struct Asks {
    now: f64,
    device: usize,
    class: ClassId,
    /// Whether it is tried with one batch, to see whether it does again.
    trial: bool,
    warm: Option<Warm>,
}

/// When a device may get what it did not get of a class.
#[derive(Debug, Clone, Copy)]
struct Later {
    /// Seconds until then.
    seconds: f64,
    /// Whether there is something that waits for it.
    waits: bool,
}

impl<T> Scheduler<T> {
    /// Work for a device that has room: moved into `batch`, which is empty.
    ///
    /// `warm` matters only if the device [is backlogged](Self::backlogged); jobs that `wanted` denies
    /// are dropped. What was dropped, here or for its deadline, is in `batch` in any case.
    pub fn next_batch(
        &mut self,
        now: Duration,
        device: usize,
        warm: Option<Warm>,
        mut wanted: impl FnMut(&T) -> bool,
        batch: &mut JobBatch<T>,
    ) -> Next {
        let now = now.as_secs_f64();
        if self.is_over() {
            return Next::Over;
        }
        self.notice_stalls(now);
        let trial = match self.eligibility(now, device) {
            Eligibility::Works => false,
            Eligibility::Tried => true,
            Eligibility::Rests { until } => return wait(now, until),
        };
        let mut order = std::mem::take(&mut self.order);
        self.order_classes(now, device, &mut order);
        let again = self.take_in_turn(&order, (now, device, trial, warm), &mut wanted, batch);
        self.order = order;
        if batch.jobs.is_empty() {
            self.devices[device].rests(now + LEAST_PAUSE);
            return wait(now, self.next_stall(now).min(now + again));
        }
        self.hand_out(now, device, batch);
        Next::Batch
    }

    /// The first class of `order` of which the device gets something; if none, says for how many seconds
    /// that holds.
    fn take_in_turn(
        &mut self,
        order: &[ClassId],
        (now, device, trial, warm): (f64, usize, bool, Option<Warm>),
        wanted: &mut impl FnMut(&T) -> bool,
        batch: &mut JobBatch<T>,
    ) -> f64 {
        let mut again = f64::INFINITY;
        let (mut passed_over, done_at) = (false, self.devices[device].done_at());
        for &class in order {
            let early = done_at.map_or(0.0, |at| at - now - PASS_OVER);
            if passed_over && early > 0.0 {
                return again.min(early);
            }
            let later = self.take_of(&Asks { now, device, class, trial, warm }, wanted, batch);
            if !batch.jobs.is_empty() {
                batch.class = class;
                return again;
            }
            again = again.min(later.seconds);
            passed_over |= later.waits;
        }
        again
    }

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

    /// A device has taken a batch.
    fn hand_out(&mut self, now: f64, device: usize, batch: &JobBatch<T>) {
        let (size, class) = (batch.size(), batch.class);
        let record = &mut self.classes[class.0];
        record.running += size.inputs;
        let fastest = record.fastest();
        let cost = record.members[device].model(fastest).seconds(size);
        self.devices[device].took(now, class, size, cost);
        self.charge(class, device, cost);
        self.see(now, device);
    }

    fn eligibility(&self, now: f64, index: usize) -> Eligibility {
        let device = &self.devices[index];
        let (alone, idle) = (!self.others_serve(index), device.is_idle());
        let full = Eligibility::Rests { until: f64::INFINITY };
        match device.condition.health() {
            _ if !device.has_room() => full,
            Health::Serving => Eligibility::Works,
            Health::Suspect if idle => Eligibility::Works,
            Health::Out if idle && alone => Eligibility::Works,
            Health::Out => match device.condition.try_at() {
                Some(at) if at > now => Eligibility::Rests { until: at },
                _ if idle => Eligibility::Tried,
                _ => full,
            },
            // What is accepted is answered, even if an operator has drained the last device.
            Health::Draining | Health::Drained if self.closed && alone => Eligibility::Works,
            _ => full,
        }
    }

    /// What the device gets of a class, or when it may.
    fn take_of(
        &mut self,
        asks: &Asks,
        wanted: &mut impl FnMut(&T) -> bool,
        batch: &mut JobBatch<T>,
    ) -> Later {
        let now = asks.now;
        let fastest = self.classes[asks.class.0].fastest().unwrap_or_default();
        let least = |tokens: usize| fastest.fixed + fastest.per_token * float(tokens);
        let mut judge = |job: &Job<T>| {
            if !wanted(&job.payload) {
                Err(Dropped::Unwanted)
            } else if job.ticket.deadline < now + least(job.tokens) {
                Err(Dropped::TooLate)
            } else {
                Ok(())
            }
        };
        let mut again = f64::INFINITY;
        if !asks.trial {
            again = self.take_failed(asks, &mut judge, batch);
        }
        if batch.jobs.is_empty() {
            let later = self.take_waiting(asks, &mut judge, batch);
            return Later { seconds: again.min(later.seconds), ..later };
        }
        Later { seconds: again, waits: false }
    }

    /// What another device failed at, apart from all else, so that an input that devices fail at
    /// takes no others with it. The device itself tries again only where there is no other, or where
    /// none has come for it: one that hangs before it asks is not known to. Says in how many seconds
    /// that will be.
    fn take_failed(
        &mut self,
        asks: &Asks,
        judge: &mut impl FnMut(&Job<T>) -> Result<(), Dropped>,
        batch: &mut JobBatch<T>,
    ) -> f64 {
        let &Asks { now, device, class, .. } = asks;
        let record = &mut self.classes[class.0];
        if !record.retries {
            return f64::INFINITY;
        }
        let limit = record.members[device].batch_tokens;
        let wish = Wish { skip: 0, budget: limit, limit, lengths: Lengths::Any };
        let alone = !record.others_serve(device, &self.devices);
        let patience = self.settings.no_device_patience.as_secs_f64();
        let (mut again, mut retries) = (f64::INFINITY, false);
        for (index, other) in record.members.iter_mut().enumerate() {
            let left =
                if index == device && !alone { other.failed_at + patience - now } else { 0.0 };
            if batch.jobs.is_empty() && other.failed.inputs() > 0 && left <= 0.0 {
                other.failed.take(&wish, judge, batch);
            }
            if other.failed.inputs() > 0 {
                retries = true;
                again = again.min(left.max(0.0));
            }
        }
        record.retries = retries;
        again
    }

    /// What was assigned to the device, or its part of what is common; if that is to wait, says
    /// until when.
    fn take_waiting(
        &mut self,
        asks: &Asks,
        judge: &mut impl FnMut(&Job<T>) -> Result<(), Dropped>,
        batch: &mut JobBatch<T>,
    ) -> Later {
        let &Asks { now, device, class, trial, warm } = asks;
        let source = self.classes[class.0].source(device, trial);
        let backlog = self.classes[class.0].queue(source).tokens();
        if self.classes[class.0].queue(source).is_empty() {
            return Later { seconds: f64::INFINITY, waits: false };
        }
        let limit = self.classes[class.0].members[device].batch_tokens;
        let (skip, tokens) = match self.part(asks, source) {
            Take::Batch { skip, tokens } => (skip, tokens.min(limit)),
            Take::Wait { seconds } => {
                let seconds = seconds.min(self.classes[class.0].next_turn(device));
                return Later { seconds, waits: true };
            }
        };
        let full = tokens >= limit && backlog > limit;
        let warm = warm.filter(|warm| warm.class == class).map_or(0, |warm| warm.tokens);
        let budget = if full { budget_for(backlog, limit, warm) } else { tokens };
        let common = source == Source::Common;
        let lengths = if common { self.lengths(class, device) } else { Lengths::Any };
        let aged = now - self.settings.bulk_age.as_secs_f64();
        let record = &mut self.classes[class.0];
        record.queue(source).take(&Wish { skip, budget, limit, lengths }, aged, judge, batch);
        record.snapshot.backlog_changed();
        let seconds = if common { record.next_turn(device) } else { f64::INFINITY };
        Later { seconds, waits: false }
    }

    /// How much of it.
    fn part(&mut self, asks: &Asks, source: Source) -> Take {
        match source {
            _ if asks.trial => Take::Batch { skip: 0, tokens: 1 },
            Source::Assigned(_) => Take::Batch { skip: 0, tokens: usize::MAX },
            Source::Common => {
                self.look(asks.now, asks.class);
                let record = &mut self.classes[asks.class.0];
                record.consider(asks.device);
                record.policy.take(asks.device, &record.snapshot.views)
            }
        }
    }

    /// Who shares a batch makes no difference to attention's work, a sum over the inputs: nothing is
    /// padded. Who runs which inputs does, where devices' C differ relative to their B.
    fn lengths(&self, class: ClassId, device: usize) -> Lengths {
        let record = &self.classes[class.0];
        let ratio = |member: &Member<T>| {
            let speed = &member.speed;
            let known = speed.coefficients().filter(|_| speed.observed() >= C_KNOWN)?;
            (known.per_token > 0.0).then_some(known.per_square / known.per_token)
        };
        let Some(own) = ratio(&record.members[device]) else { return Lengths::Any };
        let (mut sum, mut rates) = (0.0, 0.0);
        for (index, other) in record.serving(&self.devices) {
            if index != device
                && let Some(ratio) = ratio(other)
            {
                sum += other.rate * ratio;
                rates += other.rate;
            }
        }
        if rates == 0.0 {
            return Lengths::Any;
        }
        let long = 2.0 * record.snapshot.length;
        let worse = (1.0 + own * long) / (1.0 + sum / rates * long) - 1.0;
        let mean = whole(record.snapshot.length);
        match worse {
            _ if worse > ADVANTAGE => Lengths::Short(mean),
            _ if worse < -ADVANTAGE => Lengths::Long(mean),
            _ => Lengths::Any,
        }
    }
}

impl<T> ClassRecord<T> {
    /// Where a device's next batch comes from. One that is tried takes a little from whoever has most.
    fn source(&self, device: usize, trial: bool) -> Source {
        let most =
            || (0..self.members.len()).max_by_key(|&other| self.members[other].assigned.tokens());
        let from = if trial { most().unwrap_or(device) } else { device };
        let empty = self.members[from].assigned.is_empty();
        if empty { Source::Common } else { Source::Assigned(from) }
    }

    fn queue(&mut self, source: Source) -> &mut Backlog<T> {
        match source {
            Source::Assigned(device) => &mut self.members[device].assigned,
            Source::Common => &mut self.common,
        }
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

/// What a batch is taken from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Source {
    /// What was assigned to a device.
    Assigned(usize),
    /// What was not.
    Common,
}

/// Whether a device may have work.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Eligibility {
    Works,
    /// With one batch, to see whether it does again.
    Tried,
    /// Until this time, in seconds, or an event.
    Rests {
        until: f64,
    },
}

fn wait(now: f64, until: f64) -> Next {
    Next::Wait { until: Duration::try_from_secs_f64(until.max(now + LEAST_PAUSE)).ok() }
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
