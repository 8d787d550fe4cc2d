//! Batches of practice, before real ones come: kernels get compiled and loaded, a backend measures
//! which of its ways is fastest, and whoever schedules learns how long batches take.
//!
//! - [`timed`] are batches at sizes an octave apart: what is measured there stands for those between.
//! - [`ways`] are batches that together take every [way](Lower::way) that any batch can take.
//!
//! The choice behind it: what is practised is the whole forward pass, so that nothing is rehearsed
//! that never runs. A way that is taken for the first time may be a second away: a library reads
//! its kernels from disk, thousands of them, as each is first used.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use vecmill_memory::Pool;

use crate::backend::{Backend, Lower};
use crate::batch::{Batch, Shape};
use crate::encoder::{EncodeError, Encoder};
use crate::prepared::{Programs, SequenceRows};

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

/// A batch of so many tokens: a first sequence of `longest`, then others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Practice {
    tokens: usize,
    longest: usize,
    others: usize,
}

/// Batches of practice, each by the lengths of its sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PracticeBatches {
    /// Those to [tune](Backend::tune) the backend with, and to time.
    pub timed: Vec<Vec<usize>>,
    /// Those that take the ways that are left.
    pub ways: Vec<Vec<usize>>,
}

impl<B: Backend> Encoder<B> {
    /// The batches that [`warm_up`](Self::warm_up) runs, for whoever has to run them in another way.
    pub fn practice(&self, most: usize) -> PracticeBatches {
        let timed = timed(most, self.limits().max_tokens);
        let pads = |shape| self.backend().pads(shape);
        let ways = self.programs().ways(&timed, most, pads);
        let lengths = |all: Vec<Practice>| all.into_iter().map(Practice::lengths).collect();
        PracticeBatches { timed: lengths(timed), ways: lengths(ways) }
    }

    /// Runs batches from small ones up to `most` tokens, and one of the longest sequences, each
    /// first to [tune](Backend::tune) the backend and then to time it; then those that take the
    /// ways that are left. Of either, no further one is begun `limit` after the first. `progress`
    /// is told batches done and in all.
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
        let timed = timed(most, self.limits().max_tokens);
        let pads = |shape| self.backend().pads(shape);
        let ways = self.programs().ways(&timed, most, pads);
        let all = timed.len() + ways.len();
        let mut practised = Vec::new();
        let begun = Instant::now();
        for (done, practice) in timed.iter().enumerate() {
            progress(done, all);
            if begun.elapsed() >= limit {
                break;
            }
            practised.push(self.time(&practice.batch(), pool)?);
        }
        // What is not made ready now has to be when a request waits for it.
        let begun = Instant::now();
        for (done, practice) in ways.iter().enumerate() {
            progress(timed.len() + done, all);
            if begun.elapsed() >= limit {
                break;
            }
            self.encode(&practice.batch(), pool, Duration::ZERO)?;
        }
        progress(all, all);
        Ok(practised)
    }

    /// Tunes the backend with a batch, and times it.
    fn time(&self, batch: &Batch, pool: &Pool<B::Source>) -> Result<Practised, EncodeError> {
        let backend = self.backend();
        backend.tune(true);
        let tuned = self.encode(batch, pool, Duration::ZERO);
        backend.tune(false);
        tuned?;
        let mut took = Duration::MAX;
        for _ in 0..REPEATS {
            let start = Instant::now();
            self.encode(batch, pool, Duration::ZERO)?;
            took = took.min(start.elapsed());
        }
        Ok(Practised { shape: batch.shape(), took })
    }
}

impl<L: Lower> Programs<L> {
    /// Batches of up to `most` tokens that take the ways that those `before` don't. `pads` says which
    /// shapes run padded.
    fn ways(
        &self,
        before: &[Practice],
        most: usize,
        pads: impl Fn(Shape) -> bool,
    ) -> Vec<Practice> {
        let (longest, lower) = (self.max_tokens(), self.lowering());
        let way_of_tokens = |tokens| {
            let shape = Practice::equal(tokens, USUAL_LENGTH.min(longest)).shape();
            let planned = self.bucket(shape).tokens;
            lower.way(if pads(shape) { planned } else { tokens }, planned)
        };
        let known = before.iter().map(|practice| way_of_tokens(practice.tokens));
        let mut known: HashSet<u64> = known.collect();
        let tokens = (1..=most).filter(|&tokens| known.insert(way_of_tokens(tokens)));
        let of_tokens = tokens.map(|tokens| Practice::equal(tokens, USUAL_LENGTH.min(longest)));
        let mut ways: Vec<Practice> = of_tokens.collect();
        ways.extend(lower.attention_mixes().iter().map(|&(first, others)| Practice {
            tokens: most,
            longest: first.min(longest),
            others: others.min(longest),
        }));
        match self.sequence_rows() {
            SequenceRows::None => return ways,
            SequenceRows::OfTheSameLayers => {}
            SequenceRows::OfOwnLayers => known.clear(),
        }
        let way_of_sequences = |sequences| {
            let planned = self.bucket(Practice::equal(sequences, 1).shape()).sequences;
            lower.way(sequences, planned)
        };
        let sequences = (1..=most).filter(|&sequences| known.insert(way_of_sequences(sequences)));
        ways.extend(sequences.map(|sequences| Practice::equal(sequences, 1)));
        ways
    }
}

/// Batches at sizes an octave apart up to `most` tokens, and one of the longest sequences.
fn timed(most: usize, longest: usize) -> Vec<Practice> {
    let octaves = std::iter::successors(Some(SMALLEST), |tokens| tokens.checked_mul(2));
    let octaves = octaves.take_while(move |&tokens| tokens < most).chain([most]);
    let usual = octaves.map(move |tokens| Practice::equal(tokens, USUAL_LENGTH.min(longest)));
    usual.chain((longest > USUAL_LENGTH).then(|| Practice::equal(most, longest))).collect()
}

impl Practice {
    /// Of sequences of `length`, and a shorter last one.
    fn equal(tokens: usize, length: usize) -> Self {
        Self { tokens, longest: length, others: length }
    }

    fn shape(self) -> Shape {
        let longest = self.longest.min(self.tokens);
        let others = (self.tokens - longest).div_ceil(self.others.max(1));
        Shape { tokens: self.tokens, sequences: 1 + others, longest }
    }

    /// Of its sequences.
    fn lengths(self) -> Vec<usize> {
        let mut left = self.tokens;
        let lengths = [self.longest].into_iter().chain(std::iter::repeat(self.others.max(1)));
        let lengths = lengths.map_while(|length| {
            let length = length.min(left);
            left -= length;
            (length > 0).then_some(length)
        });
        lengths.collect()
    }

    fn batch(self) -> Batch {
        let ids = vec![0; self.longest.max(self.others)];
        let mut batch = Batch::new();
        self.lengths().into_iter().for_each(|length| batch.push(&ids[..length]));
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sizes::Sizes;
    use vecmill_model::{DType, Model};

    #[test]
    fn sizes_double_up_to_the_largest_and_the_longest_come_last() {
        let timed = |most, longest| {
            let of = |practice: Practice| (practice.tokens, practice.longest);
            timed(most, longest).into_iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(timed(100, 512), [(16, 128), (32, 128), (64, 128), (100, 128), (100, 512)]);
        assert_eq!(timed(10, 64), [(10, 64)]);
    }

    #[test]
    fn a_batch_has_the_shape_asked_for() {
        for (tokens, longest, others) in
            [(16, 128, 128), (256, 128, 128), (300, 128, 128), (1, 1, 1), (300, 96, 1), (90, 96, 0)]
        {
            let practice = Practice { tokens, longest, others };
            let batch = practice.batch();
            assert_eq!(batch.shape(), practice.shape());
            assert_eq!((batch.tokens(), batch.longest()), (tokens, longest.min(tokens)));
        }
    }

    /// Ways as a GPU's: each count of rows up to 16 has its own, then there are some per octave.
    fn way(rows: usize, planned: usize) -> u64 {
        let step = (rows.next_power_of_two() / 16).max(1);
        2 * rows.div_ceil(step) as u64 * step as u64 + u64::from(planned > 300)
    }

    #[test]
    fn every_way_that_a_batch_can_take_is_practised() {
        const MOST: usize = 700;
        for name in ["bert-mean", "bert-cls", "bert-lasttoken"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
            let model = Model::open(&folder.join(name)).unwrap();
            let sizes = Sizes { way, ..Sizes::of(DType::F16) };
            let encoder = Programs::of(sizes, &model, None).unwrap();
            let longest = encoder.max_tokens();
            let encoder = encoder.with_largest(Shape { tokens: MOST, sequences: MOST, longest });
            let timed = timed(MOST, longest);
            let all = [timed.clone(), encoder.ways(&timed, MOST, |_| false)].concat();
            let shapes = all.iter().map(|practice| practice.shape());
            let ways = |shapes: &mut dyn Iterator<Item = Shape>, rows: fn(Shape) -> usize| {
                let way = |shape| way(rows(shape), rows(encoder.bucket(shape)));
                shapes.map(way).collect::<HashSet<_>>()
            };
            let tokens = ways(&mut shapes.clone(), |shape| shape.tokens);
            let mut sequences = ways(&mut shapes.clone(), |shape| shape.sequences);
            if encoder.sequence_rows() != SequenceRows::OfOwnLayers {
                sequences.extend(&tokens);
            }
            for rows in 1..=MOST {
                let shape = Shape { tokens: rows, sequences: rows, longest: 1 };
                assert!(tokens.contains(&way(rows, encoder.bucket(shape).tokens)), "{rows}");
                let of_sequences = way(rows, encoder.bucket(shape).sequences);
                let needed = encoder.sequence_rows() != SequenceRows::None;
                assert!(!needed || sequences.contains(&of_sequences), "{name} {rows}");
            }
            assert!(all.len() < 120, "{} batches", all.len());
        }
    }

    #[test]
    fn mixes_of_lengths_are_practised_with_as_many_tokens_as_there_may_be() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
        let model = Model::open(&folder).unwrap();
        let sizes = Sizes { attention_mixes: &[(96, 1)], ..Sizes::of(DType::F16) };
        let encoder = Programs::of(sizes, &model, None).unwrap();
        let ways = encoder.ways(&timed(500, 128), 500, |_| false);
        assert_eq!(ways, [Practice { tokens: 500, longest: 96, others: 1 }]);
    }
}
