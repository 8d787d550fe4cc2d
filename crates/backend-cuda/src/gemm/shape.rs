//! Formats, and ranges of row counts.

use crate::driver::cublaslt::DataType;
use vecmill_model::DType;

/// The format of a matrix's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `f32`; from compute capability 8.0 on.
    Bf16,
    /// IEEE 754 single precision.
    F32,
}

impl From<DType> for Format {
    fn from(format: DType) -> Self {
        match format {
            // Of what is not an operand of a linear layer.
            DType::F16 | DType::F8E4M3 => Self::F16,
            DType::BF16 => Self::Bf16,
            DType::F32 => Self::F32,
        }
    }
}

impl Format {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    pub(super) fn data_type(self) -> DataType {
        match self {
            Self::F16 => DataType::F16,
            Self::Bf16 => DataType::Bf16,
            Self::F32 => DataType::F32,
        }
    }
}

/// How many ranges lie between a number of rows and twice as many.
const PER_OCTAVE: usize = 8;

/// Row counts that share an algorithm. Up to 16 rows, each count has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowRange {
    /// How far its row counts are apart from those of the next one, a power of two.
    width: usize,
    most: usize,
}

impl RowRange {
    /// The range of `rows` rows; none count as one.
    pub fn of(rows: usize) -> Self {
        let rows = rows.max(1);
        let octave = (rows - 1).checked_ilog2().unwrap_or(0);
        let width = ((1 << octave) / PER_OCTAVE).max(1);
        Self { width, most: rows.next_multiple_of(width) }
    }

    /// The fewest rows in it.
    pub fn fewest(self) -> usize {
        self.most + 1 - self.width
    }

    /// The most rows in it.
    pub fn most(self) -> usize {
        self.most
    }
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// As much workspace as NVIDIA recommends: <https://docs.nvidia.com/cuda/cublas/#cublassetworkspace>
pub(crate) fn workspace_limit(compute_capability: (u32, u32)) -> usize {
    if compute_capability >= (9, 0) { 32 * MIB } else { 4 * MIB }
}

/// In how many parts sums may be computed. More do not pay: each part is written and read again.
const PARTS: usize = 16;

/// For what algorithms keep beside partial sums, such as counters.
const LEAST_WORKSPACE: usize = 256 * KIB;

/// Room for the partial sums of a range, up to `limit`.
pub(crate) fn workspace_bytes(rows: usize, outputs: usize, limit: usize) -> usize {
    let rows = RowRange::of(rows).most();
    let sums = rows.saturating_mul(outputs).saturating_mul(size_of::<f32>());
    sums.saturating_mul(PARTS).saturating_add(LEAST_WORKSPACE).min(limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_counts_have_ranges_of_their_own() {
        for rows in 1..=16 {
            let range = RowRange::of(rows);
            assert_eq!((range.fewest(), range.most()), (rows, rows));
        }
        let range = RowRange::of(17);
        assert_eq!((range.fewest(), range.most()), (17, 18));
    }

    #[test]
    fn an_octave_has_eight_ranges() {
        for octave in 4..17 {
            let rows = (1_usize << octave) + 1..=(2 << octave);
            let mut ranges: Vec<_> = rows.map(RowRange::of).collect();
            ranges.dedup();
            assert_eq!(ranges.len(), PER_OCTAVE, "from 2^{octave} on");
        }
    }

    proptest! {
        #[test]
        fn ranges_cover_all_counts_once(rows in 1_usize..1 << 24) {
            let range = RowRange::of(rows);
            prop_assert!((range.fewest()..=range.most()).contains(&rows));
            prop_assert_eq!(RowRange::of(range.fewest()), range);
            prop_assert_eq!(RowRange::of(range.most()), range);
            prop_assert_eq!(RowRange::of(range.most() + 1).fewest(), range.most() + 1);
            prop_assert!(range.most() * 8 <= rows * 9, "more than an eighth too many");
        }

        #[test]
        fn workspace_grows_with_rows(
            fewer in 0_usize..1 << 20, more in 0_usize..1 << 20, outputs in 1_usize..1 << 14,
        ) {
            let bytes = |rows| workspace_bytes(rows, outputs, 32 * MIB);
            prop_assert!(bytes(fewer) <= bytes(fewer + more));
            prop_assert!(bytes(more) <= 32 * MIB);
        }
    }
}
