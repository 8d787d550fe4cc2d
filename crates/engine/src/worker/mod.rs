//! Devices, whatever their backend: what an engine asks of one, and the thread that it has.
//!
//! [`device`] is a device and what its thread does; [`loading`] has models come and go on it.

mod device;
mod loading;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use vecmill_encoder::{Backend, Batch, EncodeError, Limits, PlanStatistics, PracticeBatches};
use vecmill_memory::Statistics;
use vecmill_memory::recording::Recording;
use vecmill_scheduler::{ClassId, Speed};

use crate::answer::JobQueue;
use crate::error::StartError;
use crate::metrics::PoolSample;
pub(crate) use device::{Device, Resident};
use device::{DeviceLoop, not_here};
pub(crate) use loading::{Loading, Profile, largest_batch};

/// A device of any backend, on a thread of its own.
pub(crate) trait Worker: Send + Sync {
    /// Runs batches as the engine's device number `index`, until that device's work is over.
    fn work(&self, queue: &JobQueue, index: usize);
    /// The vectors of texts given as ids, by the model of a class, beside all queues.
    fn try_out(&self, class: ClassId, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError>;
    /// Puts another model on it, as the class of that number; says what is known of its speed there.
    fn load(
        &self,
        at: (usize, ClassId),
        queue: &JobQueue,
        loading: &Loading<'_>,
    ) -> Result<Speed, StartError>;
    /// The batches of practice of the model of a class.
    fn practice(&self, class: ClassId) -> PracticeBatches;
    /// Whether batches are for practice from now on.
    fn tune(&self, on: bool);
    /// The most tokens of a batch of a class from now on, as practice has shown.
    fn set_batch_tokens(&self, class: ClassId, tokens: usize);
    /// Takes a model off it that has no more work, and gives its memory back.
    fn unload(&self, at: (usize, ClassId), queue: &JobQueue);
    fn name(&self) -> &str;
    /// Of the model of a class, if it is here.
    fn limits(&self, class: ClassId) -> Option<Limits>;
    /// The most tokens of a batch of a class; 0 if it is not here.
    fn batch_tokens(&self, class: ClassId) -> usize;
    /// The most tokens of a batch of each class where nobody uses `free` bytes of the device's memory:
    /// fewer than usual if what was counted on is no longer there, but enough for any one input.
    fn batch_tokens_with(&self, free: usize) -> Vec<(ClassId, usize)>;
    /// Batches that it has at once.
    fn in_flight(&self) -> usize;
    /// Bytes that it has of the device, for weights and batches.
    fn memory_bytes(&self) -> usize;
    fn memory(&self) -> PoolSample;
    fn trim_memory(&self) -> usize;
    fn memory_recording(&self) -> Recording;
    /// Ends what runs beside the batches.
    fn stop(&self);
}

impl<B: Backend> Worker for Device<B> {
    fn work(&self, queue: &JobQueue, index: usize) {
        DeviceLoop::new(self, queue, index).work();
    }

    fn try_out(&self, class: ClassId, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let batch: Batch = texts.iter().collect();
        let Some(resident) = self.resident(class) else { return Err(not_here()) };
        let rows = resident.encoder.encode(&batch, &self.pool, self.patience)?;
        self.pool.trim(); // memory follows use
        let dimensions = resident.encoder.limits().dimensions;
        Ok(rows.chunks_exact(dimensions).map(<[f32]>::to_vec).collect())
    }

    fn load(
        &self,
        at: (usize, ClassId),
        queue: &JobQueue,
        loading: &Loading<'_>,
    ) -> Result<Speed, StartError> {
        self.load_beside(at, queue, loading)
    }

    fn practice(&self, class: ClassId) -> PracticeBatches {
        let resident = self.resident(class);
        resident.map_or_else(PracticeBatches::default, |resident| {
            resident.encoder.practice(resident.batch_tokens())
        })
    }

    fn tune(&self, on: bool) {
        self.backend.tune(on);
    }

    fn set_batch_tokens(&self, class: ClassId, tokens: usize) {
        if let Some(resident) = self.resident(class) {
            resident.batch_tokens.store(tokens, Ordering::Relaxed);
        }
    }

    fn unload(&self, at: (usize, ClassId), queue: &JobQueue) {
        self.unload_from(at, queue);
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self, class: ClassId) -> Option<Limits> {
        Some(self.resident(class)?.encoder.limits())
    }

    fn batch_tokens(&self, class: ClassId) -> usize {
        self.resident(class).map_or(0, |resident| resident.batch_tokens())
    }

    fn batch_tokens_with(&self, free: usize) -> Vec<(ClassId, usize)> {
        let Statistics { budget_bytes, reserved_bytes, held_bytes, .. } = self.pool.statistics();
        let residents = self.all_residents();
        let room = budget_bytes.saturating_sub(reserved_bytes);
        let alone = residents.len() < 2;
        let tokens = |resident: &Resident<B>| {
            if held_bytes.saturating_add(free) < room {
                // As at the start, not all that is free: the driver needs some.
                resident.batch_tokens_in(held_bytes + free / 10 * 9)
            } else if alone {
                resident.batch_tokens()
            } else {
                resident.batch_tokens_in(room)
            }
        };
        residents.iter().map(|(class, resident)| (*class, tokens(resident))).collect()
    }

    fn in_flight(&self) -> usize {
        self.backend.in_flight()
    }

    fn memory_bytes(&self) -> usize {
        let Statistics { reserved_bytes, held_bytes, .. } = self.pool.statistics();
        reserved_bytes + held_bytes
    }

    fn memory(&self) -> PoolSample {
        let ways = self.backend.ways_taken();
        let plans = self.all_residents().into_iter().map(|(_, it)| it.encoder.plan_statistics());
        let add = |a: PlanStatistics, b: PlanStatistics| PlanStatistics {
            plans: a.plans + b.plans,
            hits: a.hits + b.hits,
            misses: a.misses + b.misses,
            evictions: a.evictions + b.evictions,
        };
        PoolSample {
            pool: self.pool.statistics(),
            plans: plans.reduce(add).unwrap_or_default(),
            first_uses: ways.saturating_sub(self.ways_practised),
        }
    }

    fn trim_memory(&self) -> usize {
        self.pool.trim()
    }

    fn memory_recording(&self) -> Recording {
        self.pool.recording()
    }

    fn stop(&self) {
        let trimmer = self.trimmer.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(trimmer); // outside the lock: this waits for its thread
    }
}

/// Starts a device's thread. If that ends before its work is over, by a panic that no batch has to do
/// with, the device is gone: others do its work, or nobody.
pub(crate) fn spawn(
    device: Arc<dyn Worker>,
    queue: Arc<JobQueue>,
    index: usize,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let name = device.name().to_owned();
    std::thread::Builder::new().name(name).spawn(move || {
        let work = AssertUnwindSafe(|| device.work(&queue, index));
        if catch_unwind(work).is_err() {
            let _ = catch_unwind(AssertUnwindSafe(|| queue.lose(index)));
            let device = device.name();
            tracing::error!(device, "the device's thread panicked and is gone: please report this");
        }
    })
}

#[cfg(test)]
mod tests;
