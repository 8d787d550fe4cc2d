//! A device asks for work: whose turn it is (`share`), and then, of that class alone: whether it may have
//! some ([`Eligibility`]), from where, how much (the policy says), and of what lengths.

use std::time::Duration;

use crate::backlog::{Backlog, Wish};
use crate::class::{ClassRecord, DeviceRecord, LEAST_PAUSE};
use crate::health::Health;
use crate::job::{ClassId, Dropped, Job, JobBatch, float};
use crate::lengths::Lengths;
use crate::policy::Take;
use crate::scheduler::Scheduler;
use crate::warm::{Warm, budget_for};

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

/// A busy device passes a class over, whose turn it is and that leaves its work to others or to later,
/// only so many seconds before it is done with its batch. Were the place behind that batch given away
/// at once, a class of long batches could keep a device from one of short batches, or of few inputs.
const PASS_OVER: f64 = 0.001;

/// A device that asks, and when.
#[derive(Debug, Clone, Copy)]
struct Asks {
    now: f64,
    device: usize,
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
        let asks = Asks { now, device, trial, warm };
        let again = self.take_in_turn(&order, &asks, &mut wanted, batch);
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
        asks: &Asks,
        wanted: &mut impl FnMut(&T) -> bool,
        batch: &mut JobBatch<T>,
    ) -> f64 {
        let mut again = f64::INFINITY;
        let done_at = self.devices[asks.device].done_at();
        let early = done_at.map_or(0.0, |at| at - asks.now - PASS_OVER);
        let mut passed_over = false;
        for &class in order {
            if passed_over && early > 0.0 {
                return again.min(early);
            }
            let later = self.take_of(class, asks, wanted, batch);
            if !batch.jobs.is_empty() {
                batch.class = class;
                return again;
            }
            again = again.min(later.seconds);
            passed_over |= later.waits;
        }
        again
    }

    /// A device has taken a batch.
    fn hand_out(&mut self, now: f64, device: usize, batch: &JobBatch<T>) {
        let (size, class) = (batch.size(), batch.class);
        let record = &mut self.classes[class.0];
        record.running += size.inputs;
        record.rates();
        let cost = record.rates.model(&record.members[device].speed).seconds(size);
        self.devices[device].took(now, class, size, cost);
        self.charge(class, device, cost);
        self.refresh_device(now, device);
    }

    fn eligibility(&self, now: f64, index: usize) -> Eligibility {
        let device = &self.devices[index];
        let (alone, idle) = (|| !self.others_serve(index), device.is_idle());
        let full = Eligibility::Rests { until: f64::INFINITY };
        match device.condition.health() {
            _ if !device.has_room() => full,
            Health::Serving => Eligibility::Works,
            Health::Suspect if idle => Eligibility::Works,
            Health::Out if idle && alone() => Eligibility::Works,
            Health::Out => match device.condition.try_at() {
                Some(at) if at > now => Eligibility::Rests { until: at },
                _ if idle => Eligibility::Tried,
                _ => full,
            },
            // What is accepted is answered, even if an operator has drained the last device.
            Health::Draining | Health::Drained if self.closed && alone() => Eligibility::Works,
            _ => full,
        }
    }

    /// What the device gets of a class, or when it may.
    fn take_of(
        &mut self,
        class: ClassId,
        asks: &Asks,
        wanted: &mut impl FnMut(&T) -> bool,
        batch: &mut JobBatch<T>,
    ) -> Later {
        let &Asks { now, device, trial, .. } = asks;
        let fastest = self.classes[class.0].rates().fastest.unwrap_or_default();
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
        if !trial {
            again = self.take_failed(class, now, device, &mut judge, batch);
        }
        if batch.jobs.is_empty() {
            let later = self.take_waiting(class, asks, &mut judge, batch);
            return Later { seconds: again.min(later.seconds), ..later };
        }
        Later { seconds: again, waits: false }
    }

    /// What was assigned to the device, or its part of what is common; if that is to wait, says
    /// until when.
    fn take_waiting(
        &mut self,
        class: ClassId,
        asks: &Asks,
        judge: &mut impl FnMut(&Job<T>) -> Result<(), Dropped>,
        batch: &mut JobBatch<T>,
    ) -> Later {
        let &Asks { now, device, trial, warm } = asks;
        let record = &mut self.classes[class.0];
        let source = record.source(device, trial);
        let backlog = record.queue(source).tokens();
        if record.queue(source).is_empty() {
            return Later { seconds: f64::INFINITY, waits: false };
        }
        let common = source == Source::Common;
        let take = match source {
            _ if trial => Take::Batch { skip: 0, tokens: 1 },
            Source::Assigned(_) => Take::Batch { skip: 0, tokens: usize::MAX },
            Source::Common => {
                record.refresh(now, &self.devices);
                record.update_policy(device);
                record.policy.take(device, &record.snapshot.views)
            }
        };
        let limit = record.members[device].batch_tokens;
        let (skip, tokens) = match take {
            Take::Batch { skip, tokens } => (skip, tokens.min(limit)),
            Take::Wait { seconds } => {
                return Later { seconds: seconds.min(record.next_turn(device)), waits: true };
            }
        };
        let full = tokens >= limit && backlog > limit;
        let warm = warm.filter(|warm| warm.class == class).map_or(0, |warm| warm.tokens);
        let budget = if full { budget_for(backlog, limit, warm) } else { tokens };
        let lengths = if common { record.lengths(device, &self.devices) } else { Lengths::Any };
        let aged = now - self.settings.bulk_age.as_secs_f64();
        record.queue(source).take(&Wish { skip, budget, limit, lengths }, aged, judge, batch);
        record.invalidate_policy();
        let all_dropped = common && batch.jobs.is_empty();
        let seconds = if all_dropped { record.next_turn(device) } else { f64::INFINITY };
        Later { seconds, waits: false }
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

    /// What lengths a device is to take, beside the others that serve.
    fn lengths(&self, device: usize, devices: &[DeviceRecord]) -> Lengths {
        let others = self.serving(devices).filter(|(index, _)| *index != device);
        let others = others.map(|(index, other)| (self.rates.of(index), &other.speed));
        Lengths::of(&self.members[device].speed, others, self.rates.length)
    }

    fn queue(&mut self, source: Source) -> &mut Backlog<T> {
        match source {
            Source::Assigned(device) => &mut self.members[device].assigned,
            Source::Common => &mut self.common,
        }
    }
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
