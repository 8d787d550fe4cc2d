//! Rotary positions (RoFormer: Su et al., arXiv:2104.09864): which frequencies queries and keys are turned
//! with.

/// Turns of queries and keys by their positions.
///
/// Of each head the first `dims` columns are turned, in pairs: column `i` with column `i + dims / 2`, by
/// position · frequency `i`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Columns of a head that are turned: an even number.
    pub dims: usize,
    /// The base of the frequencies: that of pair `i` is theta^(−2i / dims).
    pub theta: f64,
    /// How they are changed, so that a model sees farther than it was trained to.
    pub scaling: RotaryScaling,
}

/// Changes of rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// None.
    None,
    /// All are divided by a factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Theta is multiplied by the factor, then all are divided by factor^(2 / dims): the highest
    /// frequency by that, the lowest by the factor.
    Ntk {
        /// At least 1.
        factor: f64,
    },
    /// Theta grows with the sequence, from the length on that the model was trained with. Each sequence has
    /// its own, whatever else is in the batch.
    DynamicNtk {
        /// At least 1.
        factor: f64,
        /// Tokens up to which nothing changes.
        trained: usize,
    },
}

impl Rotary {
    /// The frequencies in a sequence of `tokens`, in radians per position, one for each pair; in single
    /// precision, as models are trained with.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "sizes are far below 2⁵³, and rounding is the purpose"
    )]
    pub fn frequencies(&self, tokens: usize) -> Vec<f32> {
        let dims = self.dims as f64;
        let (grown, divisor) = match self.scaling {
            RotaryScaling::None => (1.0, 1.0),
            RotaryScaling::Linear { factor } => (1.0, factor),
            RotaryScaling::Ntk { factor } => (factor, factor.powf(2.0 / dims)),
            RotaryScaling::DynamicNtk { factor, trained } if tokens > trained => {
                let beyond = factor * tokens as f64 / trained as f64 - (factor - 1.0);
                (beyond.powf(dims / (dims - 2.0)), 1.0)
            }
            RotaryScaling::DynamicNtk { .. } => (1.0, 1.0),
        };
        let theta = self.theta * grown;
        let frequency = |pair: usize| theta.powf(-2.0 * pair as f64 / dims) / divisor;
        (0..self.dims / 2).map(|pair| frequency(pair) as f32).collect()
    }

    /// Whether frequencies are other ones in sequences of other lengths.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RotaryScaling::DynamicNtk { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(scaling: RotaryScaling, tokens: usize) -> Vec<f32> {
        Rotary { dims: 8, theta: 10_000.0, scaling }.frequencies(tokens)
    }

    #[test]
    fn scaled_frequencies_are_lower_at_the_far_end() {
        let plain = with(RotaryScaling::None, 9);
        assert_eq!(plain, [1.0, 0.1, 0.01, 0.001]);
        let linear = with(RotaryScaling::Linear { factor: 2.0 }, 9);
        assert_eq!(linear, [0.5, 0.05, 0.005, 0.0005]);
        let ntk = with(RotaryScaling::Ntk { factor: 16.0 }, 9);
        assert_eq!((ntk[0], ntk[3]), (0.5, 0.001 / 16.0));
    }

    #[test]
    fn dynamic_frequencies_change_from_the_trained_length_on() {
        let scaling = RotaryScaling::DynamicNtk { factor: 2.0, trained: 64 };
        assert_eq!(with(scaling, 64), with(RotaryScaling::None, 64));
        // theta · (2 · 128 / 64 − 1)^(8 / 6)
        let theta = 10_000.0 * 3.0_f64.powf(8.0 / 6.0);
        let rotary = Rotary { dims: 8, theta, scaling: RotaryScaling::None };
        assert_eq!(with(scaling, 128), rotary.frequencies(1));
        assert!(with(scaling, 65)[3] < 0.001);
    }
}
