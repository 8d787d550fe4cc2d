//! What fits a memory budget, before anything is loaded.
//!
//! A server finds its largest batch with the same function: the two never disagree.

pub use vecmill_encoder::{Fit, FitError, Shape, SlabSize};
pub use vecmill_model::DType;

use crate::builder::Builder;
use crate::devices::{Cpu, Cuda, Kind, Opening, format_name};
use crate::error::StartError;

/// Where it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The kind of device.
    pub place: Place,
    /// Batches that run at once.
    pub in_flight: usize,
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// This machine's processor, in single precision.
    Cpu,
    /// A GPU that computes in this format. None need be there.
    Gpu(DType),
}

impl Target {
    /// The CPU, with one batch on all of its threads.
    pub const CPU: Self = Self { place: Place::Cpu, in_flight: 1 };

    /// A GPU in half precision: while one batch runs, the next is made ready.
    pub const GPU: Self = Self { place: Place::Gpu(DType::F16), in_flight: 2 };

    /// The number format as [`Info::dtype`](crate::Info::dtype) names it.
    pub fn dtype(self) -> &'static str {
        format_name(self.kind().1)
    }

    fn kind(self) -> (&'static dyn Kind, DType) {
        match self.place {
            Place::Cpu => (&Cpu, DType::F32),
            Place::Gpu(format) => (&Cuda, format),
        }
    }
}

/// What fits where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// The Hugging Face id or folder that the model came from.
    pub model_id: String,
    /// `model_type` of its `config.json`.
    pub architecture: String,
    /// The most tokens that one input may have.
    pub max_input_tokens: usize,
    /// The device that it was asked for.
    pub target: Target,
    /// Bytes of the machine's memory that are for something else: [`Builder::set_aside`].
    pub set_aside_bytes: usize,
    /// What a GPU's driver takes beside the budget, roughly: context, libraries, kernels.
    pub driver_bytes: Option<usize>,
    /// The largest batch, and what it, the weights and other batches take.
    pub fit: Fit,
}

impl Builder {
    /// Finds what fits the memory budget on `target`: fetches the model's files as
    /// [`start`](Self::start) does, but loads no weights and needs no device.
    ///
    /// # Errors
    /// As for [`start`](Self::start); [`StartError::Budget`] tells how much is missing when not even
    /// the longest input fits.
    pub fn capacity(&self, target: Target) -> Result<Capacity, StartError> {
        self.check()?;
        let settings = &self.settings();
        let model = &settings.open_unserved(&settings.fetch()?)?;
        let (kind, format) = target.kind();
        Ok(Capacity {
            model_id: settings.model_name().0,
            architecture: model.config.model_type.into(),
            max_input_tokens: model.max_input_tokens(),
            target,
            set_aside_bytes: settings.set_aside,
            driver_bytes: kind.driver_bytes(),
            fit: kind.fit(&Opening { settings, model }, format, target.in_flight)?,
        })
    }
}
