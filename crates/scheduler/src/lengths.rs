//! Which inputs a device is relatively good at, where several serve.
//!
//! Who shares a batch makes no difference to attention's work, a sum over the inputs: nothing is padded.
//! Who runs which inputs does, where devices' C differ relative to their B.

use crate::job::whole;
use crate::speed::Speed;

/// How much better than others a device has to be at long inputs, or short ones, to be preferred.
const ADVANTAGE: f64 = 0.1;

/// Batches after which a device's C is worth acting on.
const C_KNOWN: u64 = 50;

/// Which inputs a device is relatively good at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Lengths {
    /// All alike.
    Any,
    /// Those of at least so many tokens.
    Long(usize),
    /// Those of fewer tokens.
    Short(usize),
}

impl Lengths {
    /// Whether inputs of a mean length are.
    pub(crate) fn suit(self, mean: usize) -> bool {
        match self {
            Self::Any => true,
            Self::Long(from) => mean >= from,
            Self::Short(below) => mean < below,
        }
    }

    /// Those of a device beside others, whose rates are known, where inputs have this mean length.
    pub(crate) fn of<'a>(
        own: &Speed,
        others: impl Iterator<Item = (f64, &'a Speed)>,
        mean: f64,
    ) -> Self {
        let ratio = |speed: &Speed| {
            let known = speed.coefficients().filter(|_| speed.observed() >= C_KNOWN)?;
            (known.per_token > 0.0).then_some(known.per_square / known.per_token)
        };
        let Some(own) = ratio(own) else { return Self::Any };
        let (mut sum, mut rates) = (0.0, 0.0);
        for (rate, speed) in others {
            if let Some(ratio) = ratio(speed) {
                sum += rate * ratio;
                rates += rate;
            }
        }
        if rates == 0.0 {
            return Self::Any;
        }
        let long = 2.0 * mean;
        let worse = (1.0 + own * long) / (1.0 + sum / rates * long) - 1.0;
        match worse {
            _ if worse > ADVANTAGE => Self::Short(whole(mean)),
            _ if worse < -ADVANTAGE => Self::Long(whole(mean)),
            _ => Self::Any,
        }
    }
}
