//! A vector for each sequence: its rows pooled, then dense layers, where the model has some.

use super::{Head, Task, of_sequences};
use vecmill_model::{Dense, HeadLayer, Linear, Model, Pooling, Poolings, Weight};

pub(super) const TASK: Task = Task { find, tail: of_sequences };

/// Any model can embed.
#[expect(clippy::unnecessary_wraps, reason = "other tasks are not for every model")]
fn find(model: &Model, pooling: Option<Pooling>) -> Option<Head> {
    let pooling = pooling.map_or(model.pipeline.pooling, Poolings::from);
    Some(Head { pooling, layers: model.pipeline.dense.iter().map(layer).collect() })
}

fn layer(Dense { weight, bias, activation }: &Dense) -> HeadLayer {
    let (weight, bias) = (Weight::Tensor(weight.clone()), bias.clone().map(Weight::Tensor));
    HeadLayer::Linear(Linear { weight, bias }, *activation)
}

/// Which numbers of a pooled row are given length one together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// None: they stay as they are.
    AsIs,
    /// Those that are kept.
    Kept,
    /// All of the row, before it is cut.
    Whole,
}

/// Cuts a pooled row to its leading `dimensions` and scales it as `scaling` says.
///
/// A row of zeros stays as it is.
///
/// ```
/// use vecmill_encoder::{Scaling, finish};
///
/// assert_eq!(finish(&[3.0, 4.0, 12.0], 2, Scaling::Kept), [0.6, 0.8]);
/// assert_eq!(finish(&[3.0, 4.0, 0.0], 1, Scaling::Whole), [0.6]);
/// ```
pub fn finish(row: &[f32], dimensions: usize, scaling: Scaling) -> Vec<f32> {
    let kept = &row[..dimensions.min(row.len())];
    let measured = match scaling {
        Scaling::AsIs => return kept.to_vec(),
        Scaling::Kept => kept,
        Scaling::Whole => row,
    };
    let squares: f64 = measured.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    // As in PyTorch's `normalize`: the floor keeps zeros from becoming NaN.
    let scale = 1.0 / squares.sqrt().max(1e-12);
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
    kept.iter().map(|&value| (f64::from(value) * scale) as f32).collect()
}
