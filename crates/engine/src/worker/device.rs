//! A device: a backend with its memory and the models on it; and what its thread does: takes batches
//! from the queue, starts them, and answers.
//!
//! - Where the device works while the host goes on, a second thread collects results in the order
//!   of the starts, so that neither a start nor an answer ever waits for the next batch of texts.
//!   As many batches are under way as the backend wants; only then is the next one taken, as late
//!   and as full as possible.
//! - What a batch does when it gets no memory is the lease's error to say: wait for another batch,
//!   split in halves, or give up.
//! - What would make a whole batch an error and may be one input's doing is looked for in halves, so
//!   that only that input hears it.
//! - A batch that the device failed at is tried once more.
//!
//! The choice behind it: jobs are held as [`Taken`], which the device has failed at when it is let go
//! of. So whatever happens, panics on either thread included, each job is answered or done elsewhere.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{SendError, Sender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use vecmill_encoder::{Backend, BackendError, Batch, EncodeError, Encoder, Started};
use vecmill_memory::{Cause, LeaseError, Pool, Remedy, Trimmer};
use vecmill_scheduler::{ClassId, Failed, Job, Size};

use crate::answer::{JobQueue, Part, Payload};
use crate::error::RequestError;
use crate::metrics::{Outcome, Ran, WorkLabels};
use crate::recording::RefusalRecordings;
use crate::request::Embedding;

/// How long a batch, with all that it is split into, waits for memory.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How often one input that can't be split looks for memory that other processes have: nobody tells
/// when they give it back.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Sizes of slabs of which is kept how many tokens fit: a pool has few of them at a time.
const FITTING: usize = 32;

/// A device: a backend, its memory, and the models that are on it.
#[derive(Debug)]
pub(crate) struct Device<B: Backend> {
    pub(super) name: Arc<str>,
    pub(super) backend: Arc<B>,
    pub(super) pool: Pool<B::Source>,
    /// The models, by the numbers of their classes.
    pub(super) residents: RwLock<Vec<Option<Arc<Resident<B>>>>>,
    pub(super) patience: Duration,
    /// Ways of computing that were taken in practice.
    pub(super) ways_practised: u64,
    pub(super) refusal_recordings: Option<RefusalRecordings>,
    pub(super) trimmer: Mutex<Option<Trimmer>>,
}

/// A model on a device.
#[derive(Debug)]
pub(crate) struct Resident<B: Backend> {
    pub(crate) encoder: Encoder<B>,
    /// The most tokens of a batch here.
    pub(super) batch_tokens: AtomicUsize,
    /// Bytes of slabs, and the tokens that surely fit each: the last answers.
    pub(super) fitting: Mutex<VecDeque<(usize, usize)>>,
    /// Dropped after all else: whoever waits for that hears it.
    pub(super) gone: Mutex<Option<Sender<()>>>,
}

impl<B: Backend> Resident<B> {
    /// Tokens of a batch that a slab of so many bytes holds.
    fn tokens_within(&self, bytes: usize) -> usize {
        let known = || self.fitting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&(_, tokens)) = known().iter().find(|(slab, _)| *slab == bytes) {
            return tokens;
        }
        let tokens = self.encoder.tokens_within(bytes);
        let mut known = known();
        known.truncate(FITTING - 1);
        known.push_front((bytes, tokens));
        tokens
    }
}

impl<B: Backend> Device<B> {
    /// The model of a class, if it is here.
    pub(crate) fn resident(&self, class: ClassId) -> Option<Arc<Resident<B>>> {
        let residents = self.residents.read().unwrap_or_else(PoisonError::into_inner);
        residents.get(class.index()).cloned().flatten()
    }

    /// Tokens of a batch of a class that the largest idle slab holds.
    pub(super) fn warm_tokens(&self, class: ClassId) -> usize {
        let bytes = self.pool.warm_bytes();
        self.resident(class).map_or(0, |resident| resident.tokens_within(bytes))
    }

    /// Starts a batch of a model. One that can't be split waits until `deadline` for memory that others
    /// use.
    fn start(
        &self,
        encoder: &Encoder<B>,
        batch: &Batch,
        deadline: Instant,
    ) -> Result<Started<B>, EncodeError> {
        let mut refused = false;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let result = encoder.start(batch, &self.pool, patience);
            let Err(EncodeError::Memory(error)) = &result else { return result };
            if let Some(recordings) = self.refusal_recordings.as_ref().filter(|_| !refused) {
                recordings.refused(&self.name, || self.pool.recording());
            }
            refused = true;
            let too_large = matches!(error, LeaseError::TooLarge { .. });
            let over = error.remedy() != Remedy::Split || too_large || patience.is_zero();
            if over || batch.sequences() > 1 {
                return result;
            }
            thread::park_timeout(LOOK_AGAIN.min(patience));
        }
    }
}

/// A device at work for an engine.
pub(super) struct DeviceLoop<'a, B: Backend> {
    device: &'a Device<B>,
    queue: &'a JobQueue,
    /// The device's number in the engine.
    index: usize,
    /// When the device was last done with a batch.
    last_done: Mutex<Instant>,
}

/// Jobs that the device has taken. Dropped with any left, as a panic does, it has failed at them.
struct Taken<'s, 'a, B: Backend> {
    device_loop: &'s DeviceLoop<'a, B>,
    class: ClassId,
    jobs: Vec<Job<Payload>>,
}

impl<B: Backend> Taken<'_, '_, B> {
    /// The jobs, for whom answers them.
    fn into_jobs(mut self) -> Vec<Job<Payload>> {
        std::mem::take(&mut self.jobs)
    }

    /// Parts with the second half of the jobs.
    fn split_off(&mut self) -> Self {
        let jobs = self.jobs.split_off(self.jobs.len() / 2);
        Self { device_loop: self.device_loop, class: self.class, jobs }
    }
}

impl<B: Backend> Drop for Taken<'_, '_, B> {
    fn drop(&mut self) {
        let (device_loop, class) = (self.device_loop, self.class);
        let jobs = std::mem::take(&mut self.jobs);
        let inputs = jobs.len();
        if inputs == 0 {
            return;
        }
        // A panic must not leave a drop. If there is another, the jobs answer by being dropped, and the
        // device has its place back.
        let fail = || device_loop.failed(class, jobs, &EncodeError::panicked(), Duration::ZERO);
        if catch_unwind(AssertUnwindSafe(fail)).is_err() {
            let give_up = || device_loop.queue.gave_up(device_loop.index, class, inputs);
            let _ = catch_unwind(AssertUnwindSafe(give_up));
        }
    }
}

/// A batch that the device works on.
struct InFlight<'s, 'a, B: Backend> {
    taken: Taken<'s, 'a, B>,
    resident: Arc<Resident<B>>,
    started: Instant,
    batch: Started<B>,
}

impl<'a, B: Backend> DeviceLoop<'a, B> {
    pub(super) fn new(device: &'a Device<B>, queue: &'a JobQueue, index: usize) -> Self {
        Self { device, queue, index, last_done: Mutex::new(Instant::now()) }
    }

    /// Runs batches until the device's work is over.
    pub(super) fn work(&self) {
        // Entering the backend's threads once, for good, saves two changes of thread per batch.
        let backend = &self.device.backend;
        let Some(queued) = backend.in_flight().checked_sub(2) else {
            return backend.enter(|| self.start_batches(&|batch| self.collect(batch)));
        };
        // Besides those queued, the collector holds one, and so does whoever sends.
        let (sender, receiver) = sync_channel::<InFlight<'_, 'a, B>>(queued);
        thread::scope(|scope| {
            let collect = move || {
                for batch in receiver {
                    self.guarded(|| self.collect(batch));
                }
            };
            let name = format!("{}-collect", self.device.name);
            if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, collect) {
                tracing::warn!(device = &*self.device.name, %error, "batches run one by one");
            }
            backend.enter(move || {
                self.start_batches(&|batch| {
                    // Without a collector, this thread is it.
                    if let Err(SendError(batch)) = sender.send(batch) {
                        self.collect(batch);
                    }
                });
            });
        });
    }

    /// Runs what is done for a batch. After a panic the device has failed at it, and goes on.
    fn guarded(&self, run: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            tracing::error!(device = &*self.device.name, "a batch panicked: please report this");
        }
    }

    fn start_batches<'s>(&'s self, then: &dyn Fn(InFlight<'s, 'a, B>)) {
        let warm = |class| self.device.warm_tokens(class);
        let mut batch = vecmill_scheduler::JobBatch::new();
        while self.queue.next_batch(self.index, warm, &mut batch) {
            let (class, jobs) = (batch.class(), std::mem::take(&mut batch.jobs));
            let taken = Taken { device_loop: self, class, jobs };
            batch.clear();
            let deadline = Instant::now() + self.device.patience;
            match self.device.resident(class) {
                Some(resident) => self.guarded(|| self.start(taken, &resident, deadline, then)),
                None => self.failed(class, taken.into_jobs(), &not_here(), Duration::ZERO),
            }
        }
    }

    /// Starts jobs as one batch, or in parts if they get no memory together before `deadline`, or if
    /// one of them can't run.
    fn start<'s>(
        &'s self,
        mut taken: Taken<'s, 'a, B>,
        resident: &Arc<Resident<B>>,
        deadline: Instant,
        then: &dyn Fn(InFlight<'s, 'a, B>),
    ) {
        let mut batch = Batch::new();
        for Job { payload: work, .. } in &taken.jobs {
            batch.push_pair(&work.tokens.ids, work.tokens.second);
        }
        let started = Instant::now();
        match self.device.start(&resident.encoder, &batch, deadline) {
            Ok(batch) => {
                let resident = Arc::clone(resident);
                then(InFlight { taken, resident, started, batch });
            }
            Err(error) if splits(&error) && taken.jobs.len() > 1 => {
                self.count(&taken.jobs, Outcome::Split, started.elapsed());
                let second = taken.split_off();
                self.start(taken, resident, deadline, then);
                self.start(second, resident, deadline, then);
            }
            Err(error) => {
                self.failed(taken.class, taken.into_jobs(), &error, started.elapsed());
            }
        }
    }

    /// Waits for a batch and answers.
    fn collect(&self, InFlight { taken, resident, started, batch }: InFlight<'_, 'a, B>) {
        let result = resident.encoder.collect(batch);
        let class = taken.class;
        let done = Instant::now();
        // The device takes batches one after the other: until the one before was done, it had not
        // begun with this one.
        let mut last_done = self.last_done.lock().unwrap_or_else(PoisonError::into_inner);
        let took = done.saturating_duration_since(started.max(*last_done));
        *last_done = done;
        drop(last_done);
        match result {
            Ok(rows) => {
                self.count(&taken.jobs, Outcome::Ok, took);
                let size = Size::of(&taken.jobs);
                if let Some(predicted) = self.queue.ran(self.index, class, size, took)
                    && let Some(labels) = self.labels(&taken.jobs)
                {
                    self.queue.metrics.predicted(&labels, took.as_secs_f64(), predicted);
                }
                let dimensions = resident.encoder.limits().dimensions;
                drop(resident);
                self.answer(taken.into_jobs(), rows.chunks_exact(dimensions), (started, done));
            }
            Err(error) => self.failed(class, taken.into_jobs(), &error, took),
        }
    }

    /// Has `jobs` tried once more if the device failed, and otherwise says why not. Whatever is only
    /// told comes last.
    fn failed(&self, class: ClassId, jobs: Vec<Job<Payload>>, error: &EncodeError, took: Duration) {
        let (inputs, last) = (jobs.len(), jobs.iter().any(Job::failed_before));
        let blamed = blames_device(error);
        let outcome = if blamed && !last { Outcome::Retried } else { Outcome::Failed };
        self.count(&jobs, outcome, took);
        let Failed { refused, taken_out } = if blamed {
            self.queue.failed(self.index, jobs)
        } else {
            self.queue.gave_up(self.index, class, inputs);
            Failed { refused: jobs, taken_out: false }
        };
        let answered = refused.len();
        for job in refused {
            job.payload.request.fail(self.refusal(class, &job.payload, error));
        }
        let device = &*self.device.name;
        if blamed {
            tracing::warn!(device, inputs, last, %error, "the device failed");
        }
        if taken_out {
            tracing::error!(device, %error, "the device keeps failing and is taken out");
        }
        if answered > 0 {
            tracing::error!(device, inputs = answered, %error, "batch failed");
        }
    }

    /// What the caller of one of the inputs is told.
    fn refusal(&self, class: ClassId, work: &Payload, error: &EncodeError) -> RequestError {
        let index = work.index;
        match error {
            &EncodeError::Memory(LeaseError::TooLarge { needed, available }) => {
                RequestError::InputTooLarge { index, needed, available }
            }
            EncodeError::Memory(error) if error.remedy() != Remedy::Reject => {
                RequestError::NoMemory {
                    device: self.device.name.to_string(),
                    reason: error.to_string(),
                    retry_after: self.queue.backlog_time(class),
                }
            }
            &EncodeError::UnknownToken { token, vocabulary } => {
                RequestError::NoEmbedding { index, token, rows: vocabulary }
            }
            &EncodeError::TooLong { tokens, limit } => {
                RequestError::TooManyTokens { index, tokens, limit }
            }
            error => RequestError::Device {
                device: self.device.name.to_string(),
                reason: error.to_string(),
            },
        }
    }

    fn answer<'r>(
        &self,
        jobs: Vec<Job<Payload>>,
        rows: impl Iterator<Item = &'r [f32]>,
        (started, done): (Instant, Instant),
    ) {
        let inference = done.saturating_duration_since(started);
        let Some(labels) = self.labels(&jobs) else { return };
        // The encoder has seen to it that there is a row for each; were there none, whoever waits for it
        // would hear that it was lost.
        for (Job { payload: work, .. }, row) in jobs.into_iter().zip(rows) {
            let queue = started.saturating_duration_since(work.queued);
            self.queue.metrics.waited(&labels, queue.as_secs_f64());
            let Some(vector) = work.request.finish.of(row) else {
                work.request.fail(RequestError::NotFinite { index: work.index });
                continue;
            };
            let embedding = Embedding {
                vector,
                tokens: work.tokens.ids.len(),
                truncated: work.tokens.truncated,
            };
            let part = Part { index: work.index, embedding, queue, inference };
            work.request.resolve(part);
        }
    }

    fn count(&self, jobs: &[Job<Payload>], outcome: Outcome, took: Duration) {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let ran = Ran {
            outcome,
            inputs: count(jobs.len()),
            tokens: count(tokens(jobs)),
            truncated: count(jobs.iter().filter(|job| job.payload.tokens.truncated).count()),
            seconds: took.as_secs_f64(),
        };
        if let Some(labels) = self.labels(jobs) {
            self.queue.metrics.batch(&labels, &ran);
        }
    }

    /// What the work on jobs, which are one model's, is counted by; `None` if there are none.
    fn labels(&self, jobs: &[Job<Payload>]) -> Option<WorkLabels> {
        let model = Arc::clone(&jobs.first()?.payload.request.model);
        Some(WorkLabels { device: Arc::clone(&self.device.name), model })
    }
}

/// Whether fewer inputs at once may fare better: there is less to hold, or the one at fault is not
/// among them.
fn splits(error: &EncodeError) -> bool {
    match error {
        EncodeError::Memory(error) => error.remedy() == Remedy::Split,
        EncodeError::UnknownToken { .. } | EncodeError::TooLong { .. } => true,
        _ => false,
    }
}

/// Whether another device might do better: not where the batch is wrong, or memory only is taken.
fn blames_device(error: &EncodeError) -> bool {
    match error {
        EncodeError::Backend(_) => true,
        // A device that is lost is mostly noticed by its memory.
        EncodeError::Memory(LeaseError::Source(error)) => error.cause != Cause::Exhausted,
        _ => false,
    }
}

fn tokens(jobs: &[Job<Payload>]) -> usize {
    jobs.iter().map(|job| job.tokens).sum()
}

/// A batch of a model that is not on the device: a defect, for it was to be retired first.
pub(super) fn not_here() -> EncodeError {
    let reason = "the model is not on this device: please report this".into();
    EncodeError::Backend(BackendError { operation: "finding the model", reason })
}
