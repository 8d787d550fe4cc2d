//! What every backend must get right.
//!
//! - [`operations`] runs small graphs (`cases`, `switches`) on awkward sizes, each as a program for its bucket and as
//!   one that takes most memory, and compares with a plain `f64` interpreter (`interpret`). The
//!   tolerances are worst-case rounding bounds for the operations' [`Precision`](vecmill_encoder::Precision)
//!   (N. Higham, "Accuracy and Stability of Numerical Algorithms", sections 3.1 and 4.2), computed
//!   for each element from the operands (`reference`): not one of them is a number found by trying.
//! - [`model()`] runs a whole model and compares with the vectors stored beside it, which another
//!   implementation made (`scripts/golden/tiny.py`); [`models`] finds those that are committed.
//! - [`independence`] checks that a text's vector does not depend on its neighbours in the batch.
//! - All that is loaded must take the places that the backend's
//!   [`Lower`](vecmill_encoder::Lower) named, no byte more or less.
//! - [`lowering`] checks what needs no device: that programs of buckets hold for fewer rows.
//!
//! The choice behind it: a backend's activations can't be written from outside, so operands are made by
//! its own embedding and are outputs of the graph, too. The reference then works on exactly the numbers
//! that an operation saw, and what is fused is met by graphs that a backend fuses.

mod cases;
#[cfg(test)]
mod emulated;
mod interpret;
mod lowering;
mod reference;
mod run;
mod switches;
mod whole;

use vecmill_encoder::BackendError;
use vecmill_encoder::LoadError;

pub use lowering::lowering;
pub use run::operations;
pub use whole::{Agreement, independence, model, models, precision};

/// A backend's result is off, or it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// An element differs by more than rounding explains.
    #[error("{case}: element {index} is {found}, expected {expected} ± {tolerance}")]
    Value {
        /// Operation and sizes.
        case: String,
        /// Which element of the output.
        index: usize,
        /// The backend's value.
        found: f64,
        /// The reference's value.
        expected: f64,
        /// The largest difference that rounding can cause.
        tolerance: f64,
    },
    /// The backend reported an error.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The weights could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A program is not what its bucket needs.
    #[error("{0}")]
    Program(String),
    /// The model or its expected vectors can't be used.
    #[error("{0}")]
    Fixture(String),
}
