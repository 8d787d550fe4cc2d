//! What every backend must get right.
//!
//! - [`operations`] runs each operation on awkward sizes and compares with a plain `f64` reference.
//!   The tolerances are worst-case rounding bounds for the backend's [`Precision`]
//!   (N. Higham, "Accuracy and Stability of Numerical Algorithms", sections 3.1 and 4.2), computed
//!   for each element from the operands: not one of them is a number found by trying.
//! - [`model`] runs a whole model and compares with the vectors stored beside it, which another
//!   implementation made (`scripts/golden/tiny.py`); [`models`] finds those that are committed.
//! - [`Tried`] puts any backend through what tests of its users need.
//! - All that is loaded must take the places that the backend's [`Lower`](crate::Lower) named, no byte
//!   more or less.
//! - [`independence`] checks that a text's vector does not depend on its neighbours in the batch.

#[cfg(test)]
mod emulated;
mod reference;
mod stage;
mod trial;
mod whole;

use vecmill_memory::LeaseError;

use crate::backend::{Backend, BackendError};
use stage::Stage;
use vecmill_model::{Activation, Pooling, Poolings};

pub use trial::{Trial, Tried, TriedSource};
pub use whole::{Agreement, independence, model, models};

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
    /// There is no memory for a weight.
    #[error(transparent)]
    Memory(#[from] LeaseError),
    /// The model or its expected vectors can't be used.
    #[error("{0}")]
    Fixture(String),
}

/// Sequence lengths with a single token, tile edges, more than one tile, and empty ones, as padding
/// makes them at the end.
const LENGTHS: [usize; 11] = [1, 7, 0, 64, 5, 6, 33, 130, 2, 0, 0];

/// Rows that a GPU of 16 multiprocessors deals out without remainder: there it may pay to fuse.
const FUSED_ROWS: usize = 2048;

/// Runs every operation against the reference.
///
/// # Errors
/// The first difference that rounding doesn't explain.
pub fn operations<B: Backend>(backend: &B) -> Result<(), Failure> {
    let pool = Stage::pool(backend);
    let stage = || Stage::new(backend, &pool);
    for columns in [32, 48, 100, 384] {
        stage()?.check_embed(70, columns)?;
        stage()?.check_add_norm(70, columns, false)?;
        stage()?.check_add_norm(70, columns, true)?;
        for pooling in Pooling::ALL {
            stage()?.check_pool(&LENGTHS, columns, pooling.into())?;
        }
        for several in [&Pooling::ALL[..], &[Pooling::LastToken, Pooling::Max]] {
            let several = Poolings::new(several).unwrap_or(Pooling::Mean.into());
            stage()?.check_pool(&LENGTHS, columns, several)?;
        }
    }
    for (rows, inputs, outputs) in
        [(1, 32, 96), (5, 48, 100), (49, 100, 7), (130, 384, 1152), (200, 96, 33)]
    {
        stage()?.check_linear(rows, inputs, outputs, Activation::Identity)?;
    }
    for (rows, inputs, columns) in
        [(1, 32, 32), (5, 48, 100), (70, 384, 384), (130, 1536, 384), (33, 256, 1024)]
    {
        stage()?.check_linear_add_norm(rows, inputs, columns)?;
    }
    for activation in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ] {
        stage()?.check_linear(30, 64, 128, activation)?;
        stage()?.check_feed_forward([30, 64, 128], activation, false)?;
        stage()?.check_feed_forward([FUSED_ROWS, 384, 64], activation, true)?;
    }
    stage()?.check_feed_forward([70, 384, 1536], Activation::Gelu, false)?;
    stage()?.check_feed_forward([FUSED_ROWS, 256, 192], Activation::Gelu, true)?;
    for activation in [Activation::Identity, Activation::Gelu, Activation::Relu] {
        stage()?.check_deferred([5, 48, 32, 64], activation)?;
        stage()?.check_deferred([130, 384, 768, 256], activation)?;
        stage()?.check_deferred([300, 64, 1024, 128], activation)?;
    }
    stage()?.check_deferred([70, 64, 1024, 1536], Activation::Gelu)?;
    for (heads, head_size) in [(2, 16), (3, 32), (2, 64), (1, 96), (2, 128)] {
        stage()?.check_attention(&LENGTHS, heads, head_size, false)?;
        stage()?.check_attention(&LENGTHS, heads, head_size, true)?;
    }
    stage()?.check_attention(&[512, 300], 2, 32, true)
}
