//! What vecmill is tested with, a module for each part; none of it is in the product.
//!
//! - [`simulated`]: a device that exists only as numbers, judges every use of its memory and fails on
//!   demand. Pools run on it in tests, and `vecmill-bench replay` replays traces on it.

pub mod simulated;
