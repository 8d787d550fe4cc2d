//! The queue and how batches are formed.

use std::collections::VecDeque;

use crate::admission::Full;
use crate::job::Job;

/// Jobs in order of arrival.
///
/// Inputs are admitted first, before the work of tokenising them, and released when they are
/// answered: what is in between never exceeds the capacity.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: VecDeque<Job<T>>,
    tokens: usize,
    admitted: usize,
    capacity: usize,
}

impl<T> Queue<T> {
    /// An empty queue for at most `capacity` inputs.
    pub fn new(capacity: usize) -> Self {
        Self { waiting: VecDeque::new(), tokens: 0, admitted: 0, capacity }
    }

    /// Makes room for `inputs`, all or none.
    ///
    /// Into an empty queue any number is admitted: a request larger than the capacity could
    /// otherwise never be served.
    ///
    /// # Errors
    /// [`Full`] when the capacity does not allow it now.
    pub fn admit(&mut self, inputs: usize) -> Result<(), Full> {
        if self.admitted > 0 && self.admitted + inputs > self.capacity {
            return Err(Full { admitted: self.admitted, capacity: self.capacity });
        }
        self.admitted += inputs;
        Ok(())
    }

    /// Frees the room of `inputs` that have been answered or given up.
    pub fn release(&mut self, inputs: usize) {
        self.admitted = self.admitted.saturating_sub(inputs);
    }

    /// Adds jobs at the end.
    pub fn push(&mut self, jobs: impl IntoIterator<Item = Job<T>>) {
        for job in jobs {
            self.tokens += job.tokens;
            self.waiting.push_back(job);
        }
    }

    /// Takes the oldest jobs whose tokens fit together into `budget`; one that is longer than the
    /// budget comes alone. Jobs that `wanted` denies are dropped on the way.
    ///
    /// Never empty while a wanted job waits.
    pub fn next_batch(&mut self, budget: usize, mut wanted: impl FnMut(&T) -> bool) -> Vec<Job<T>> {
        let mut batch = Vec::new();
        let mut used = 0;
        while let Some(job) = self.waiting.pop_front() {
            if !wanted(&job.payload) {
                self.tokens -= job.tokens;
            } else if batch.is_empty() || used + job.tokens <= budget {
                self.tokens -= job.tokens;
                used += job.tokens;
                batch.push(job);
            } else {
                self.waiting.push_front(job);
                break;
            }
        }
        batch
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Tokens of the jobs that wait: the backlog.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Inputs admitted and not yet released.
    pub fn admitted(&self) -> usize {
        self.admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_queue_says_so_and_an_empty_one_takes_anything() {
        let mut queue = Queue::<()>::new(10);
        queue.admit(8).unwrap();
        assert_eq!(queue.admit(3), Err(Full { admitted: 8, capacity: 10 }));
        queue.admit(2).unwrap();
        queue.release(10);
        queue.admit(50).unwrap();
        assert!(queue.admit(1).is_err());
    }

    #[test]
    fn a_job_longer_than_the_budget_runs_alone() {
        let mut queue = Queue::new(10);
        queue.push([500, 10, 20].map(|tokens| Job::new(tokens, tokens)));
        let mut sizes = Vec::new();
        while !queue.is_empty() {
            sizes.push(queue.next_batch(100, |_| true).len());
        }
        assert_eq!(sizes, [1, 2]);
    }

    proptest! {
        #[test]
        fn every_wanted_job_runs_once_in_order_within_the_budget(
            jobs in prop::collection::vec((0usize..300, any::<bool>()), 0..80),
            budget in 1usize..1000,
        ) {
            let mut queue = Queue::new(1000);
            queue.push(jobs.iter().enumerate().map(|(index, &(tokens, wanted))| {
                Job::new(tokens, (index, wanted))
            }));
            let total: usize = jobs.iter().map(|job| job.0).sum();
            prop_assert_eq!(queue.tokens(), total);
            let mut seen = Vec::new();
            loop {
                let batch = queue.next_batch(budget, |&(_, wanted)| wanted);
                if batch.is_empty() {
                    break;
                }
                let tokens: usize = batch.iter().map(|job| job.tokens).sum();
                prop_assert!(tokens <= budget || batch.len() == 1);
                seen.extend(batch.iter().map(|job| job.payload.0));
            }
            let wanted: Vec<usize> =
                jobs.iter().enumerate().filter(|(_, job)| job.1).map(|(index, _)| index).collect();
            prop_assert_eq!(seen, wanted);
            prop_assert_eq!((queue.tokens(), queue.len()), (0, 0));
        }
    }
}
