//! What waits, and how batches are formed of it.
//!
//! - A [`Lane`] keeps groups of jobs, what was queued together, in order of arrival.
//! - A [`Backlog`] is a lane for each priority.
//!
//! The choices behind it:
//!
//! - Groups lie behind each other in one ring of jobs, so that queueing and taking neither allocate
//!   nor move what stays. One that is taken out of order leaves an empty place behind, which goes
//!   when its turn comes; each knows how many tokens were queued before it, so that a place in the
//!   queue is found by bisection. Empty places know how many follow, as far as anyone has been there.
//! - Small groups stay whole: their request is answered by one batch. Large ones are split.

use std::collections::VecDeque;

use crate::job::{Dropped, Job, JobBatch, Priority, Ticket};
use crate::lengths::Lengths;

/// Groups of up to a quarter of a device's largest batch are small.
const SMALL: usize = 4;

/// Groups that are looked through for lengths that suit a device.
const WINDOW: usize = 256;

/// What a device wants of a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// Tokens at the front that are left to others.
    pub(crate) skip: usize,
    /// Tokens that the batch should have at most. The first group may exceed it.
    pub(crate) budget: usize,
    /// Tokens that the batch may have at most. A single job may exceed it.
    pub(crate) limit: usize,
    /// What is taken first.
    pub(crate) lengths: Lengths,
}

/// Jobs that were queued together.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// The number of its first job, counting all that were ever queued here.
    first: u64,
    jobs: u32,
    /// Of an empty place, how many there are from it on, as far as is known.
    empty: u32,
    tokens: usize,
    /// Tokens that were ever queued before it.
    ahead: u64,
    ticket: Ticket,
}

/// Groups in order of arrival.
#[derive(Debug)]
pub(crate) struct Lane<T> {
    groups: VecDeque<Group>,
    jobs: VecDeque<Option<Job<T>>>,
    /// The number of the first job in `jobs`.
    first: u64,
    inputs: usize,
    tokens: usize,
    /// Tokens that were ever queued.
    queued: u64,
    /// Groups with a deadline.
    deadlines: usize,
}

impl<T> Lane<T> {
    pub(crate) fn new() -> Self {
        Self {
            groups: VecDeque::new(),
            jobs: VecDeque::new(),
            first: 0,
            inputs: 0,
            tokens: 0,
            queued: 0,
            deadlines: 0,
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// When the oldest group arrived.
    fn oldest(&self) -> Option<f64> {
        self.groups.front().map(|group| group.ticket.arrived)
    }

    /// Queues a group; each of its jobs gets the ticket.
    pub(crate) fn push(&mut self, ticket: Ticket, jobs: impl IntoIterator<Item = Job<T>>) {
        let first = self.first + self.jobs.len() as u64;
        let before = (self.jobs.len(), self.tokens);
        for mut job in jobs {
            job.ticket = ticket;
            self.tokens += job.tokens;
            self.jobs.push_back(Some(job));
        }
        let added = self.jobs.len() - before.0;
        if added == 0 {
            return;
        }
        self.inputs += added;
        let tokens = self.tokens - before.1;
        let jobs = u32::try_from(added).unwrap_or(u32::MAX);
        let ahead = self.queued;
        self.groups.push_back(Group { first, jobs, empty: 1, tokens, ahead, ticket });
        self.queued += tokens as u64;
        self.deadlines += usize::from(ticket.deadline.is_finite());
    }

    /// Moves jobs into `batch` as `wish` says, those that `judge` condemns among the dropped.
    pub(crate) fn take(
        &mut self,
        wish: &Wish,
        judge: &mut impl FnMut(&Job<T>) -> Result<(), Dropped>,
        batch: &mut JobBatch<T>,
    ) {
        let Some(front) = self.groups.front() else { return };
        let from = front.ahead + wish.skip as u64;
        let middle = |group: &Group| group.ahead + (group.tokens / 2) as u64;
        let start = self.groups.partition_point(|group| middle(group) < from);
        if wish.lengths != Lengths::Any {
            let end = self.groups.len().min(start + WINDOW);
            // The oldest goes in any case, so that none waits for a device that suits it.
            let mut first = true;
            self.take_groups(start..end, wish, judge, batch, |group| {
                std::mem::take(&mut first)
                    || wish.lengths.suit(group.tokens / group.jobs.max(1) as usize)
            });
        }
        self.take_groups(start..self.groups.len(), wish, judge, batch, |_| true);
        self.trim();
    }

    fn take_groups(
        &mut self,
        range: std::ops::Range<usize>,
        wish: &Wish,
        judge: &mut impl FnMut(&Job<T>) -> Result<(), Dropped>,
        batch: &mut JobBatch<T>,
        mut suits: impl FnMut(&Group) -> bool,
    ) {
        let mut next = range.start;
        while next < range.end {
            let (index, group) = (next, self.groups[next]);
            if group.jobs == 0 {
                next = self.behind_empty(index);
                continue;
            }
            next += 1;
            if !suits(&group) {
                continue;
            }
            let used = batch.size().tokens;
            let small = group.tokens <= wish.limit / SMALL;
            let fits = used + group.tokens <= wish.budget;
            if fits || batch.jobs.is_empty() && small {
                self.take_jobs(index, usize::MAX, judge, batch);
            } else if batch.jobs.is_empty() || !small {
                self.take_jobs(index, wish.budget.min(wish.limit), judge, batch);
            }
            if !fits {
                return;
            }
        }
    }

    /// The first place from an empty one on that is not known to be empty too.
    fn behind_empty(&mut self, index: usize) -> usize {
        let mut next = index;
        while let Some(group) = self.groups.get(next).filter(|group| group.jobs == 0) {
            next += group.empty as usize;
        }
        self.groups[index].empty = u32::try_from(next - index).unwrap_or(u32::MAX);
        next
    }

    /// Takes jobs of a group while the batch has at most `most` tokens; into an empty batch one in any
    /// case.
    fn take_jobs(
        &mut self,
        index: usize,
        most: usize,
        judge: &mut impl FnMut(&Job<T>) -> Result<(), Dropped>,
        batch: &mut JobBatch<T>,
    ) {
        let group = &mut self.groups[index];
        while group.jobs > 0 {
            let at = usize::try_from(group.first - self.first).unwrap_or(usize::MAX);
            let Some(slot) = self.jobs.get_mut(at) else { break };
            let Some(job) = slot.take() else { break };
            let tokens = job.tokens;
            match judge(&job) {
                Err(reason) => batch.dropped.push((job, reason)),
                Ok(())
                    if batch.jobs.is_empty()
                        || batch.size().tokens.saturating_add(tokens) <= most =>
                {
                    batch.add(job);
                }
                Ok(()) => {
                    *slot = Some(job);
                    return;
                }
            }
            group.first += 1;
            group.jobs -= 1;
            group.tokens -= tokens;
            group.ahead += tokens as u64;
            self.tokens -= tokens;
            self.inputs -= 1;
        }
        self.deadlines -= usize::from(group.ticket.deadline.is_finite());
    }

    /// Takes all jobs whose deadline has passed.
    pub(crate) fn expire(&mut self, now: f64, batch: &mut JobBatch<T>) {
        if self.deadlines == 0 {
            return;
        }
        for index in 0..self.groups.len() {
            let group = self.groups[index];
            if group.jobs > 0 && group.ticket.deadline < now {
                self.take_jobs(index, 0, &mut |_| Err(Dropped::TooLate), batch);
            }
        }
        self.trim();
    }

    /// Takes all jobs, because no device serves.
    pub(crate) fn forsake(&mut self, batch: &mut JobBatch<T>) {
        for index in 0..self.groups.len() {
            if self.groups[index].jobs > 0 {
                self.take_jobs(index, 0, &mut |_| Err(Dropped::NoDevice), batch);
            }
        }
        self.trim();
    }

    /// Takes the oldest group whole.
    pub(crate) fn pop(&mut self, into: &mut JobBatch<T>) -> Option<Ticket> {
        let ticket = self.groups.front()?.ticket;
        self.take_jobs(0, usize::MAX, &mut |_| Ok(()), into);
        self.trim();
        Some(ticket)
    }

    /// Forgets empty places at the front.
    fn trim(&mut self) {
        while self.groups.front().is_some_and(|group| group.jobs == 0) {
            self.groups.pop_front();
        }
        while self.jobs.front().is_some_and(Option::is_none) {
            self.jobs.pop_front();
            self.first += 1;
        }
    }
}

/// What waits, by priority.
#[derive(Debug)]
pub(crate) struct Backlog<T> {
    interactive: Lane<T>,
    bulk: Lane<T>,
}

impl<T> Backlog<T> {
    pub(crate) fn new() -> Self {
        Self { interactive: Lane::new(), bulk: Lane::new() }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.interactive.inputs + self.bulk.inputs
    }

    pub(crate) fn tokens(&self) -> usize {
        self.interactive.tokens + self.bulk.tokens
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inputs() == 0
    }

    /// Whether somebody waits for some of it, or has waited since before `aged`.
    pub(crate) fn is_urgent(&self, aged: f64) -> bool {
        self.interactive.inputs > 0 || self.bulk.oldest().is_some_and(|oldest| oldest < aged)
    }

    /// When the oldest group arrived.
    pub(crate) fn oldest(&self) -> Option<f64> {
        match (self.interactive.oldest(), self.bulk.oldest()) {
            (Some(interactive), Some(bulk)) => Some(interactive.min(bulk)),
            (interactive, bulk) => interactive.or(bulk),
        }
    }

    pub(crate) fn push(&mut self, ticket: Ticket, jobs: impl IntoIterator<Item = Job<T>>) {
        self.lane(ticket.priority).push(ticket, jobs);
    }

    /// Interactive jobs first, then bulk ones. Bulk jobs that arrived before `aged` have half of the
    /// batch before that: they can't starve, nor can whoever waits for the interactive ones.
    pub(crate) fn take(
        &mut self,
        wish: &Wish,
        aged: f64,
        judge: &mut impl FnMut(&Job<T>) -> Result<(), Dropped>,
        batch: &mut JobBatch<T>,
    ) {
        if self.interactive.inputs > 0 && self.bulk.oldest().is_some_and(|oldest| oldest < aged) {
            let half = Wish { skip: 0, budget: wish.budget / 2, ..*wish };
            self.bulk.take(&half, judge, batch);
        }
        let skip = wish.skip.saturating_sub(self.interactive.tokens);
        self.interactive.take(wish, judge, batch);
        if batch.size().tokens < wish.budget {
            self.bulk.take(&Wish { skip, ..*wish }, judge, batch);
        }
    }

    pub(crate) fn expire(&mut self, now: f64, batch: &mut JobBatch<T>) {
        self.interactive.expire(now, batch);
        self.bulk.expire(now, batch);
    }

    pub(crate) fn forsake(&mut self, batch: &mut JobBatch<T>) {
        self.interactive.forsake(batch);
        self.bulk.forsake(batch);
    }

    /// Takes the next group whole.
    pub(crate) fn pop(&mut self, into: &mut JobBatch<T>) -> Option<Ticket> {
        self.interactive.pop(into).or_else(|| self.bulk.pop(into))
    }

    fn lane(&mut self, priority: Priority) -> &mut Lane<T> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Bulk => &mut self.bulk,
        }
    }
}
