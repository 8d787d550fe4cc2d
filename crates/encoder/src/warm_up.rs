//! Batches of practice, before real ones come: kernels get compiled, a backend measures which of its
//! ways is fastest, and whoever schedules learns how long batches take.
//!
//! The choice behind it: what is practised is the whole forward pass at sizes an octave apart, so
//! that each operation meets the sizes that it will have, and nothing is rehearsed that never runs.

use std::time::{Duration, Instant};

use vecmill_memory::Pool;

use crate::backend::Backend;
use crate::batch::{Batch, Shape};
use crate::encoder::{EncodeError, Encoder};

/// Tokens of a sequence, where the model takes as many: a paragraph.
const USUAL_LENGTH: usize = 128;

/// Tokens of the smallest batch.
const SMALLEST: usize = 16;

/// How often a batch is timed: the first time may still do what later ones need not, such as
/// capturing it.
const REPEATS: usize = 2;

/// How long a batch of practice took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Practised {
    /// The batch.
    pub shape: Shape,
    /// From tokens on the host to vectors on the host.
    pub took: Duration,
}

impl<B: Backend> Encoder<B> {
    /// Runs batches from small ones up to `most` tokens, and one of the longest sequences, each
    /// first to [tune](Backend::tune) the backend and then to time it. No further size is begun
    /// after `limit`. `progress` is told sizes done and in all.
    ///
    /// # Errors
    /// [`EncodeError`] when the device fails or there is no memory for such a batch.
    pub fn warm_up(
        &self,
        pool: &Pool<B::Source>,
        most: usize,
        limit: Duration,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Vec<Practised>, EncodeError> {
        let begun = Instant::now();
        let mut practised = Vec::new();
        let sizes = sizes(most, self.limits().max_tokens);
        for (done, &(tokens, length)) in sizes.iter().enumerate() {
            progress(done, sizes.len());
            if begun.elapsed() >= limit {
                break;
            }
            let batch = practice(tokens, length);
            let backend = self.backend();
            backend.tune(true);
            let tuned = self.encode(&batch, pool, Duration::ZERO);
            backend.tune(false);
            tuned?;
            let mut took = Duration::MAX;
            for _ in 0..REPEATS {
                let start = Instant::now();
                self.encode(&batch, pool, Duration::ZERO)?;
                took = took.min(start.elapsed());
            }
            practised.push(Practised { shape: batch.shape(), took });
        }
        progress(sizes.len(), sizes.len());
        Ok(practised)
    }
}

/// Tokens of each batch and of its sequences.
fn sizes(most: usize, longest: usize) -> Vec<(usize, usize)> {
    let octaves = std::iter::successors(Some(SMALLEST), |tokens| tokens.checked_mul(2));
    let octaves = octaves.take_while(move |&tokens| tokens < most).chain([most]);
    let usual = octaves.map(move |tokens| (tokens, USUAL_LENGTH.min(longest)));
    usual.chain((longest > USUAL_LENGTH).then_some((most, longest))).collect()
}

/// A batch of `tokens`, in sequences of `length` and a shorter last one.
fn practice(tokens: usize, length: usize) -> Batch {
    let ids = vec![0; length];
    let full = std::iter::repeat_n(&ids[..], tokens / length);
    full.chain([&ids[..tokens % length]]).filter(|sequence| !sequence.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_double_up_to_the_largest_and_the_longest_come_last() {
        assert_eq!(sizes(100, 512), [(16, 128), (32, 128), (64, 128), (100, 128), (100, 512)]);
        assert_eq!(sizes(10, 64), [(10, 64)]);
    }

    #[test]
    fn a_batch_has_the_tokens_asked_for() {
        for (tokens, length) in [(16, 128), (256, 128), (300, 128), (1, 1)] {
            let batch = practice(tokens, length);
            assert_eq!(batch.tokens(), tokens);
            assert!(batch.longest() <= length);
        }
    }
}
