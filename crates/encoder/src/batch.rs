//! Packing: sequences of any lengths behind each other, without padding.

/// A batch of token sequences, packed.
///
/// ```
/// use vecmill_encoder::Batch;
///
/// let mut batch = Batch::new();
/// batch.push(&[101, 7592, 102]);
/// batch.push(&[101, 102]);
/// assert_eq!((batch.sequences(), batch.tokens(), batch.longest()), (2, 5, 3));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    starts: Vec<u32>, // one more than sequences
    /// Of each sequence, its tokens of type 0: those before a second text.
    first_texts: Vec<u32>,
    longest: usize,
}

/// How a model numbers the tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbering {
    /// The position of the first one.
    pub first: u32,
    /// Whether it tells two texts in a sequence apart, by their tokens' types.
    pub types: bool,
}

/// The bit of a token's place that has its type; the others have its position.
const TYPE_SHIFT: u32 = 31;

/// A token's position and its type, 0 or 1, from its place as [indices](Batch::indices) have it.
///
/// ```
/// use vecmill_encoder::{Batch, Numbering, position_and_type};
///
/// let mut batch = Batch::new();
/// batch.push_pair(&[101, 7592, 102, 2088, 102], 3);
/// let indices = batch.indices(batch.shape(), Numbering { first: 0, types: true });
/// assert_eq!(position_and_type(indices[16 + 2]), (2, 0));
/// assert_eq!(position_and_type(indices[16 + 3]), (3, 1));
/// ```
pub const fn position_and_type(place: u32) -> (u32, u32) {
    (place & !(1 << TYPE_SHIFT), place >> TYPE_SHIFT)
}

/// Where sequences start is told in 32 bits.
pub(crate) const MAX_BATCH_TOKENS: usize = u32::MAX as usize;

/// What the size of a batch's buffers depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
}

impl Shape {
    /// The shape that stands for this one and all that are a little smaller, so that they share a
    /// plan: tokens in 32 steps per octave, sequences and the longest in 8, none past `largest`
    /// unless it is already.
    ///
    /// Rounding tokens adds 3 % at most to what a batch takes, and nothing to the largest batch.
    ///
    /// ```
    /// use vecmill_encoder::Shape;
    ///
    /// let largest = Shape { tokens: 2040, sequences: 2040, longest: 256 };
    /// let shape = |tokens, sequences, longest| Shape { tokens, sequences, longest };
    /// assert_eq!(shape(1025, 9, 130).bucket(largest), shape(1056, 9, 144));
    /// assert_eq!(shape(2035, 300, 250).bucket(largest), shape(2040, 320, 256));
    /// ```
    #[must_use]
    pub fn bucket(self, largest: Self) -> Self {
        let round = |value: usize, steps, smallest, largest: usize| {
            round_up(value, steps, smallest).min(largest).max(value)
        };
        Self {
            tokens: round(self.tokens, 32, 16, largest.tokens),
            sequences: round(self.sequences, 8, 1, largest.sequences),
            longest: round(self.longest, 8, 1, largest.longest),
        }
    }
}

/// The next of `steps` values per octave that are multiples of `smallest`.
fn round_up(value: usize, steps: usize, smallest: usize) -> usize {
    // In (2ᵏ, 2ᵏ⁺¹] values are 2ᵏ / steps apart.
    let octave = value.saturating_sub(1).checked_ilog2().map_or(1, |k| 1 << k);
    let step = (octave / steps).max(smallest);
    value.checked_next_multiple_of(step).unwrap_or(value)
}

/// Where the parts of a batch's indices lie, counted in indices: ids come first. Each part starts
/// at a multiple of the alignment that operands have.
pub(crate) struct IndexLayout {
    pub(crate) positions: usize,
    pub(crate) starts: usize,
    pub(crate) length: usize,
}

impl IndexLayout {
    pub(crate) fn of(shape: Shape) -> Self {
        let tokens = shape.tokens.next_multiple_of(vecmill_memory::ALIGNMENT / size_of::<u32>());
        Self { positions: tokens, starts: 2 * tokens, length: 2 * tokens + shape.sequences + 1 }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { ids: Vec::new(), starts: vec![0], first_texts: Vec::new(), longest: 0 }
    }

    /// Adds a sequence. An empty one is legal here and pools to zeros.
    pub fn push(&mut self, tokens: &[u32]) {
        self.push_pair(tokens, tokens.len());
    }

    /// Adds a sequence of two texts: tokens from `second` on are of type 1, where the model has types.
    pub fn push_pair(&mut self, tokens: &[u32], second: usize) {
        let first_text = u32::try_from(second.min(tokens.len())).unwrap_or(u32::MAX);
        self.first_texts.push(first_text);
        self.ids.extend_from_slice(tokens);
        self.starts.push(u32::try_from(self.ids.len()).unwrap_or(u32::MAX));
        self.longest = self.longest.max(tokens.len());
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.starts.len() - 1
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The sizes that a plan depends on.
    pub fn shape(&self) -> Shape {
        Shape { tokens: self.tokens(), sequences: self.sequences(), longest: self.longest }
    }

    /// All token ids, sequence behind sequence.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What a device is told of the batch, padded to `shape`: ids, each token's
    /// [position and type](position_and_type), and where each sequence starts and the last one ends.
    /// Padded tokens are zeros behind the last sequence, padded sequences are empty.
    pub fn indices(&self, shape: Shape, numbering: Numbering) -> Vec<u32> {
        let layout = IndexLayout::of(shape);
        let mut indices = vec![0; layout.length];
        indices[..self.ids.len()].copy_from_slice(&self.ids);
        let Numbering { first, types } = numbering;
        let sequences = self.starts.windows(2).zip(&self.first_texts);
        let places = sequences.flat_map(|(pair, &first_text)| {
            (0..pair[1] - pair[0]).map(move |index| {
                let kind = u32::from(types && index >= first_text);
                (first + index) | (kind << TYPE_SHIFT)
            })
        });
        for (to, place) in indices[layout.positions..].iter_mut().zip(places) {
            *to = place;
        }
        let starts = &mut indices[layout.starts..][..=shape.sequences];
        let (starts, padding) = starts.split_at_mut(self.starts.len());
        starts.copy_from_slice(&self.starts);
        padding.fill(*self.starts.last().unwrap_or(&0));
        indices
    }
}

impl<T: AsRef<[u32]>> FromIterator<T> for Batch {
    fn from_iter<I: IntoIterator<Item = T>>(sequences: I) -> Self {
        let mut batch = Self::new();
        for tokens in sequences {
            batch.push(tokens.as_ref());
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_start_over_in_every_sequence() {
        let batch: Batch = [vec![5, 6, 7], vec![], vec![8, 9]].into_iter().collect();
        let numbering = Numbering { first: 2, types: true };
        let indices = batch.indices(Shape { sequences: 4, ..batch.shape() }, numbering);
        assert_eq!(indices[..6], [5, 6, 7, 8, 9, 0]);
        assert_eq!(indices[16..22], [2, 3, 4, 2, 3, 0]);
        assert_eq!(indices[32..], [0, 3, 3, 5, 5], "the padded sequence is empty");
    }

    #[test]
    fn only_models_with_types_are_told_of_second_texts() {
        let mut batch = Batch::new();
        batch.push_pair(&[5, 6, 7], 1);
        batch.push(&[8]);
        batch.push_pair(&[9, 9], 0);
        let places = |types| {
            let indices = batch.indices(batch.shape(), Numbering { first: 2, types });
            let places = indices[16..22].iter().map(|&place| position_and_type(place));
            places.collect::<Vec<_>>()
        };
        assert_eq!(places(true), [(2, 0), (3, 1), (4, 1), (2, 0), (2, 1), (3, 1)]);
        assert_eq!(places(false), [(2, 0), (3, 0), (4, 0), (2, 0), (2, 0), (3, 0)]);
    }

    const LARGEST: Shape = Shape { tokens: 16_384, sequences: 16_384, longest: 512 };

    #[test]
    fn buckets_are_exact_at_the_limit_and_few() {
        assert_eq!(LARGEST.bucket(LARGEST), LARGEST);
        let odd = Shape { tokens: 12_345, sequences: 12_345, longest: 500 };
        assert_eq!(odd.bucket(odd), odd);
        let tokens = |tokens| Shape { tokens, sequences: 1, longest: 1 }.bucket(LARGEST).tokens;
        let mut buckets: Vec<usize> = (1..=16_384).map(tokens).collect();
        buckets.dedup();
        assert_eq!(buckets.len(), 64 + 4 * 32, "1 to 1,024 by 16, then 32 per octave");
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_shapes_and_wastes_little(
            tokens in 0usize..20_000, sequences in 0usize..20_000, longest in 0usize..600,
        ) {
            let shape = Shape { tokens, sequences, longest };
            let bucket = shape.bucket(LARGEST);
            prop_assert_eq!(bucket.bucket(LARGEST), bucket);
            for (value, rounded, part) in [
                (tokens, bucket.tokens, 32),
                (sequences, bucket.sequences, 8),
                (longest, bucket.longest, 8),
            ] {
                let wasted = rounded - value; // never below
                prop_assert!(wasted <= (value / part).max(15), "{value} became {rounded}");
            }
            let more = Shape { tokens: tokens + 1, sequences, longest };
            prop_assert!(more.bucket(LARGEST).tokens >= bucket.tokens);
        }
    }
}
