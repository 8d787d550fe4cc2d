//! Numbers in JSON. Whole ones may be written with a fraction of nothing, as in `256.0`: to JSON that
//! is the same number, and some languages write all numbers so.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// A whole number, whichever way it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole(pub(crate) i64);

/// Above it, not every whole number is a float.
const EXACT: f64 = 9_007_199_254_740_992.0;

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WholeVisitor)
    }
}

struct WholeVisitor;

impl Visitor<'_> for WholeVisitor {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Whole, E> {
        Ok(Whole(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
        let fits = i64::try_from(number);
        fits.map(Whole).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Whole, E> {
        let whole = number.fract() == 0.0 && number.abs() <= EXACT;
        // The check leaves only what an i64 holds.
        let fits = whole.then_some(Whole(number as i64));
        fits.ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
    }
}

/// A token's id.
pub(super) struct TokenId(pub(super) u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Whole(id) = Whole::deserialize(deserializer)?;
        u32::try_from(id).map(Self).map_err(|_| D::Error::custom("no id"))
    }
}
