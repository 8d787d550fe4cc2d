//! How exact a backend is: what the conformance suite derives its tolerances from.

use vecmill_model::{DType, e4m3};

/// The rounding errors of a backend, from which the conformance suite derives its tolerances.
///
/// Activations, and whatever passes from one kernel to the next within an operation, are rounded to
/// the storage format; so may be biases, and the weights of attention before they meet the values.
/// Sums are of the accumulation's precision; elementary functions are, too, or within a sixteenth of
/// the storage's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Precision {
    /// Unit roundoff of the format in which activations are stored, for example 2⁻²⁴ for `f32`.
    pub storage: f64,
    /// Half the spacing of the numbers next to zero in that format: what rounding a tiny number
    /// costs.
    pub underflow: f64,
    /// Unit roundoff of the format in which sums are accumulated.
    pub accumulation: f64,
    /// Of linear layers whose operands are narrow.
    pub narrow: Option<NarrowPrecision>,
    /// Of a normalisation: whether it is left to those who read the rows, which then are kept as sums
    /// times gain, so that an error is relative to those and to the mean's share of them.
    pub deferred: bool,
}

/// The rounding errors of linear layers that round their operands to FP8 before they multiply.
///
/// Operands are scaled first. An input's scale is a power of two and no less than one. That of a
/// weight's row may be anything, unless the row's numbers are all of FP8: then it leaves them what
/// they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NarrowPrecision {
    /// Unit roundoff of the operands.
    pub operands: f64,
    /// What rounding an input near zero costs at most.
    pub underflow: f64,
    /// Unit roundoff of the products' sums.
    pub accumulation: f64,
}

impl Precision {
    /// Storage in `format`, sums in `f32`. With FP8, storage is in half precision.
    pub fn of(format: DType) -> Self {
        let (digits, smallest) = match format {
            DType::F32 => (24, -149),
            DType::F16 | DType::F8E4M3 => (11, -24),
            DType::BF16 => (8, -133),
        };
        let power = |exponent| 2.0_f64.powi(exponent);
        let (storage, underflow) = (power(-digits), power(smallest - 1));
        let narrow = (format == DType::F8E4M3).then_some(NarrowPrecision {
            operands: e4m3::ROUNDOFF,
            underflow: e4m3::UNDERFLOW,
            accumulation: power(-24),
        });
        Self { storage, underflow, accumulation: power(-24), narrow, deferred: false }
    }

    /// As [`of`](Self::of), with sums on tensor cores, which cut where others round
    /// (M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7:e330).
    pub fn of_tensor_cores(format: DType) -> Self {
        // Of products in FP8, 32 at a time are added with at least 13 bits (DeepSeek-AI,
        // arXiv:2412.19437, section 3.3.2), so that n terms cost less than n + 1 roundings of this.
        let narrow = |narrow| NarrowPrecision { accumulation: 2.0_f64.powi(-17), ..narrow };
        let of = Self::of(format);
        Self { accumulation: 2.0_f64.powi(-23), narrow: of.narrow.map(narrow), ..of }
    }
}
