//! What is scheduled: inputs of a class of work, on the terms of the request that they belong to, and
//! batches of them.

use std::time::Duration;

/// The number of a class, in the order in which they were added. The first one, the default, is there
/// from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClassId(pub(crate) usize);

impl ClassId {
    /// The one that is there from the beginning.
    pub const FIRST: Self = Self(0);

    /// The class of a number that [`Scheduler::add_class`](crate::Scheduler::add_class) gave.
    #[must_use]
    pub const fn new(number: usize) -> Self {
        Self(number)
    }

    /// The number, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

/// One input, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Job<T> {
    /// Its length.
    pub tokens: usize,
    /// Whatever the caller needs to run it and to answer.
    pub payload: T,
    pub(crate) ticket: Ticket,
}

impl<T> Job<T> {
    /// An input that has not been queued yet.
    pub fn new(tokens: usize, payload: T) -> Self {
        Self { tokens, payload, ticket: Ticket::default() }
    }

    /// Whether a device has failed at it.
    pub fn failed_before(&self) -> bool {
        self.ticket.failed_on.is_some()
    }
}

/// Who waits for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Somebody does.
    #[default]
    Interactive,
    /// Nobody in particular: it takes what interactive requests leave, and its fair part once it has
    /// waited long.
    Bulk,
}

/// The terms on which a request is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobTerms {
    /// Whether it goes before others.
    pub priority: Priority,
    /// When its answer is of no use any more, on the clock that the scheduler is told the time of.
    pub deadline: Option<Duration>,
}

/// What a job keeps from the moment it was queued. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ticket {
    pub(crate) class: ClassId,
    pub(crate) arrived: f64,
    /// Infinite where there is none.
    pub(crate) deadline: f64,
    pub(crate) priority: Priority,
    pub(crate) failed_on: Option<u32>,
}

impl Ticket {
    pub(crate) fn new(now: f64, class: ClassId, terms: JobTerms) -> Self {
        let deadline = terms.deadline.map_or(f64::INFINITY, |deadline| deadline.as_secs_f64());
        Self { class, arrived: now, deadline, priority: terms.priority, failed_on: None }
    }
}

impl Default for Ticket {
    fn default() -> Self {
        Self::new(0.0, ClassId::default(), JobTerms::default())
    }
}

/// How large a batch is, in all that its time depends on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Size {
    /// How many inputs it has.
    pub inputs: usize,
    /// Their tokens.
    pub tokens: usize,
    /// The sum of the squares of their lengths, which attention's work goes by.
    pub squares: f64,
}

impl Size {
    /// That of a batch of these jobs.
    pub fn of<T>(jobs: &[Job<T>]) -> Self {
        let mut size = Self::default();
        for job in jobs {
            size.add(job.tokens);
        }
        size
    }

    /// That of a batch of equal inputs.
    pub fn equal(inputs: usize, tokens_each: usize) -> Self {
        let tokens = inputs.saturating_mul(tokens_each);
        Self { inputs, tokens, squares: float(tokens) * float(tokens_each) }
    }

    /// One input more.
    pub fn add(&mut self, tokens: usize) {
        self.inputs += 1;
        self.tokens = self.tokens.saturating_add(tokens);
        self.squares += float(tokens) * float(tokens);
    }
}

/// Why a job left the queue without being run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// Nobody wants its result any more.
    #[error("its request was given up")]
    Unwanted,
    /// It could not be done before its deadline any more.
    #[error("its deadline can't be met any more")]
    TooLate,
    /// No device has served for too long, or ever will.
    #[error("no device serves")]
    NoDevice,
}

/// Jobs to run together, in a buffer that is used again and again.
#[derive(Debug)]
pub struct JobBatch<T> {
    /// The jobs; none if there is nothing to run.
    pub jobs: Vec<Job<T>>,
    /// Jobs that left the queue on the way, and why.
    pub dropped: Vec<(Job<T>, Dropped)>,
    pub(crate) class: ClassId,
    size: Size,
}

impl<T> JobBatch<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            jobs: Vec::new(),
            dropped: Vec::new(),
            class: ClassId::default(),
            size: Size::default(),
        }
    }

    /// What class its jobs are of.
    pub fn class(&self) -> ClassId {
        self.class
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Empties it for the next one.
    pub fn clear(&mut self) {
        self.jobs.clear();
        self.dropped.clear();
        self.size = Size::default();
    }

    pub(crate) fn add(&mut self, job: Job<T>) {
        self.size.add(job.tokens);
        self.jobs.push(job);
    }
}

impl<T> Default for JobBatch<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2⁵²")]
pub(crate) fn float(count: usize) -> f64 {
    count as f64
}

/// The whole part of a count that was computed; 0 below that.
#[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "such casts saturate")]
pub(crate) fn whole(value: f64) -> usize {
    value as usize
}
