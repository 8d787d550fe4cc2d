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
    longest: usize,
}

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

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { ids: Vec::new(), starts: vec![0], longest: 0 }
    }

    /// Adds a sequence. An empty one is legal here and pools to zeros.
    pub fn push(&mut self, tokens: &[u32]) {
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

    /// Where each sequence starts, and where the last one ends.
    pub(crate) fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Each token's place in its sequence, counted from `offset`.
    pub(crate) fn positions(&self, offset: u32) -> Vec<u32> {
        self.starts.windows(2).flat_map(|pair| offset..offset + (pair[1] - pair[0])).collect()
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

    #[test]
    fn positions_start_over_in_every_sequence() {
        let batch: Batch = [vec![5, 6, 7], vec![], vec![8, 9]].into_iter().collect();
        assert_eq!(batch.starts(), [0, 3, 3, 5]);
        assert_eq!(batch.positions(2), [2, 3, 4, 2, 3]);
    }
}
