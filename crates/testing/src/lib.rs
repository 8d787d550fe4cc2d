//! What vecmill is tested with, a module for each part; none of it is in the product.
//!
//! - [`conformance`]: the suite that every backend must pass.
//! - [`Faulty`]: a backend that is put through what tests of its users need, as a [`FaultPlan`] says.
//! - [`simulated`]: a device that exists only as numbers, judges every use of its memory and fails on
//!   demand. Pools run on it in tests, and `vecmill-bench replay` replays recordings on it.

pub mod conformance;
mod faulty;
pub mod simulated;

pub use faulty::{FaultPlan, Faulty, FaultySource};
