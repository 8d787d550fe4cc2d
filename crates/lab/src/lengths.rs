//! How long texts are, in tokens: all the same, or as real ones are.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::results::whole;

/// The median and the spread of real lengths: the logarithm is normally distributed. The mean is
/// 61.
const MEDIAN: f64 = 40.0;
const SPREAD: f64 = 0.92;

/// A text has a word between the tokens that begin and end it.
pub const SHORTEST: usize = 3;

/// Lengths of texts, the tokens that begin and end them included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// Lognormal.
    Mixed,
    /// So many tokens each.
    Equal(usize),
}

impl Lengths {
    /// The next length, at most `longest`.
    pub fn draw(self, longest: usize, random: &mut fastrand::Rng) -> usize {
        let tokens = match self {
            Self::Mixed => lognormal(random),
            Self::Equal(tokens) => tokens,
        };
        tokens.clamp(SHORTEST, longest)
    }
}

/// By Box and Muller's transform.
fn lognormal(random: &mut fastrand::Rng) -> usize {
    let (u, v) = (1.0 - random.f64(), random.f64());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    whole((MEDIAN * (SPREAD * normal).exp()).round()) as usize
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(tokens) if tokens >= SHORTEST => Ok(Self::Equal(tokens)),
            _ if text == "mixed" => Ok(Self::Mixed),
            _ => Err(format!("expected mixed or a number of tokens from {SHORTEST} on")),
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mixed => f.write_str("mixed"),
            Self::Equal(tokens) => write!(f, "{tokens}"),
        }
    }
}

impl Serialize for Lengths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
