//! What fits a memory budget, found on paper: no weight is read and no device is asked.

use crate::backend::Lower;
use crate::batch::{MAX_BATCH_TOKENS, Shape};
use crate::prepared::{Programs, last_where};
use vecmill_model::{Model, ModelError, Pooling};

/// Batches whose slabs are worth knowing, in tokens.
const SIZES: [usize; 6] = [512, 2048, 8192, 16_384, 32_768, 65_536];

/// What is asked of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// The most bytes that weights and slabs may take together.
    pub budget_bytes: usize,
    /// Batches that should run at once, each on a slab of its own.
    pub in_flight: usize,
    /// The most tokens that one input has.
    pub longest_input: usize,
    /// The most tokens that a batch should have. One that is less than the longest input counts as
    /// that.
    pub max_batch_tokens: usize,
}

/// What fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// The budget.
    pub budget_bytes: usize,
    /// What the weights take, in whole granules of a pool.
    pub weights_bytes: usize,
    /// The largest batch, whatever the lengths of its inputs.
    pub largest: Shape,
    /// The slab of the largest batch.
    pub slab_bytes: usize,
    /// Batches that run at once: as many as asked for, or fewer where not even batches of the
    /// longest input alone fit beside each other.
    pub in_flight: usize,
    /// What is left of the budget.
    pub headroom_bytes: usize,
    /// What one more token adds to a slab near the largest batch.
    pub bytes_per_token: usize,
    /// Slabs of batches of round sizes, fitting or not.
    pub slabs: Vec<SlabSize>,
}

/// How large a slab a batch needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlabSize {
    /// The batch's tokens.
    pub tokens: usize,
    /// The slab's bytes.
    pub bytes: usize,
}

/// Why nothing fits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// The model's files are wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The weights and the longest input take more than there is.
    #[error(
        "the weights take {weights_bytes} bytes and an input of {tokens} tokens takes {slab_bytes}, but the budget is {budget_bytes}: raise it by at least {missing_bytes} bytes or choose a smaller model"
    )]
    TooSmall {
        /// The budget.
        budget_bytes: usize,
        /// What the weights take.
        weights_bytes: usize,
        /// What the longest input takes.
        slab_bytes: usize,
        /// Its tokens.
        tokens: usize,
        /// What is lacking.
        missing_bytes: usize,
    },
}

/// Finds the largest batch of `model` that a device of a kind can take that `ask` allows.
///
/// # Errors
/// [`FitError`] when a file of the model is wrong or not even the longest input fits.
pub fn fit(
    model: &Model,
    pooling: Option<Pooling>,
    lowering: impl Lower,
    ask: Ask,
) -> Result<Fit, FitError> {
    let programs = Programs::of(lowering, model, pooling)?;
    let weights_bytes = programs.weights().reserved_bytes();
    let Ask { budget_bytes, longest_input, .. } = ask;
    let room = budget_bytes.saturating_sub(weights_bytes);

    let alone = Shape { tokens: longest_input, sequences: 1, longest: longest_input };
    let alone_bytes = programs.costliest(alone).plan().slab_bytes();
    let in_flight = ask.in_flight.clamp(1, (room / alone_bytes).max(1));
    let needed_bytes = weights_bytes.saturating_add(alone_bytes);
    if needed_bytes > budget_bytes {
        return Err(FitError::TooSmall {
            budget_bytes,
            weights_bytes,
            slab_bytes: alone_bytes,
            tokens: longest_input,
            missing_bytes: needed_bytes - budget_bytes,
        });
    }

    // Whatever its inputs' lengths, a batch takes at most this much.
    let shape =
        |tokens: usize| Shape { tokens, sequences: tokens, longest: longest_input.min(tokens) };
    let program = |tokens| programs.costliest(shape(tokens));
    let fits = |tokens| program(tokens).plan().slab_bytes() <= room / in_flight;
    let most = ask.max_batch_tokens.clamp(longest_input, MAX_BATCH_TOKENS.max(longest_input));
    let tokens = last_where(fits, longest_input, most);
    let (largest, half) = (program(tokens), tokens / 2);
    let slab_bytes = largest.plan().slab_bytes();
    let peak_bytes = largest.plan().peak_bytes();
    let grown = peak_bytes.saturating_sub(program(half).plan().peak_bytes());
    Ok(Fit {
        budget_bytes,
        weights_bytes,
        largest: shape(tokens),
        slab_bytes,
        in_flight,
        headroom_bytes: room.saturating_sub(in_flight * slab_bytes),
        bytes_per_token: grown / (tokens - half).max(1),
        slabs: SIZES
            .map(|tokens| SlabSize { tokens, bytes: program(tokens).plan().slab_bytes() })
            .to_vec(),
    })
}

#[cfg(test)]
mod tests;
