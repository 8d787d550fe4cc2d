//! A model's weights on the device: in one region, apart from slabs, at the offsets that were planned
//! before anything was read.
//!
//! - [`Storing`] says which forms of an operation's weights are stored, in which order; it plans their
//!   places, and loads them.
//! - [`CudaWeight`] is what was loaded; [`Stored`] one of its tensors, [`Loader`] writes them.
//! - `linear` has linear layers, `narrow` those in FP8.

mod linear;
mod narrow;

use half::{bf16, f16};
use vecmill_encoder::{AttentionBias, Graph, Node, Op, RelativeBias, WeightId};
use vecmill_encoder::{BackendError, RegionWriter, WeightPlan, biases_by_distance};
use vecmill_memory::{Cause, SourceError};
use vecmill_model::Weight;

use crate::driver::DeviceSpan;
use crate::gemm::Format;
use crate::kernels::NormOperands;
use crate::source::CudaBlock;
use crate::stream::CudaStream;
pub(crate) use linear::{
    CudaLinear, LayerNumbers, LayerTensors, NormNumbers, WideLayer, gate_group,
};
pub(crate) use narrow::NarrowLayer;

const FLOAT: usize = size_of::<f32>();

/// An operation whose weights are stored, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storing<'g> {
    pub(crate) graph: &'g Graph,
    pub(crate) node: &'g Node,
    /// Of activations, and of the weights that are multiplied with them.
    pub(crate) format: Format,
    /// If it is a linear layer.
    pub(crate) layer: LayerForm,
}

/// In which form a linear layer is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum LayerForm {
    /// In e4m3, with a scale for each output.
    Narrow,
    /// In the format of activations.
    Wide {
        /// What normalises the layer's input, if that may be left to the layer.
        input_norm: Option<InputNorm>,
    },
}

/// The norm of a layer's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct InputNorm {
    pub(crate) gain: WeightId,
    pub(crate) bias: Option<WeightId>,
    pub(crate) epsilon: f32,
}

/// The weights of one operation.
#[derive(Debug)]
pub struct CudaWeight(Kind);

#[derive(Debug)]
enum Kind {
    Embeddings(CudaEmbeddings),
    Norm(CudaNorm),
    Linear(CudaLinear),
    RelativeBias(CudaRelativeBias),
}

/// A layer normalisation's parameters on the device.
#[derive(Debug)]
pub(crate) struct CudaNorm {
    gain: Stored,
    bias: Stored,
    epsilon: f32,
}

/// Embedding tables on the device.
#[derive(Debug)]
pub(crate) struct CudaEmbeddings {
    pub(crate) words: Stored,
    pub(crate) positions: Option<Stored>,
    /// Row 0 of the token types.
    pub(crate) types: Option<Stored>,
}

/// Relative position biases on the device, by distance.
#[derive(Debug)]
pub(crate) struct CudaRelativeBias {
    pub(crate) table: Stored,
    pub(crate) reach: usize,
}

impl Storing<'_> {
    /// Names the places of all forms.
    pub(crate) fn plan(self, plan: &mut WeightPlan) {
        let elements = |id: WeightId| self.graph.weight(id).elements();
        let mut place = |elements: usize, bytes: usize| plan.place(elements * bytes);
        match self.node.op {
            Op::Embed { words, positions, types } => {
                let tables = [Some(words), positions, types].into_iter().flatten();
                tables.for_each(|table| place(elements(table), self.format.bytes()));
            }
            Op::Norm { gain, .. } => (0..2).for_each(|_| place(elements(gain), FLOAT)),
            Op::Linear { weight, .. } | Op::GatedLinear { weight, .. } => {
                let outputs = self.graph.weight(weight).rows;
                match self.layer {
                    LayerForm::Narrow => {
                        place(elements(weight), 1);
                        place(2 * outputs, FLOAT);
                    }
                    LayerForm::Wide { input_norm } => {
                        place(elements(weight), self.format.bytes());
                        place(outputs, self.format.bytes());
                        place(outputs, FLOAT);
                        if input_norm.is_some() {
                            place(2 * outputs, FLOAT);
                        }
                    }
                }
            }
            Op::Attention { bias, .. } => {
                if let Some(RelativeBias { table, reach }) = bias.and_then(AttentionBias::buckets) {
                    place(self.graph.weight(table).columns * (2 * reach + 1), FLOAT);
                }
            }
            Op::Add | Op::Rotate { .. } | Op::Pool(_) => {}
        }
    }

    /// Loads all forms, in that order.
    pub(crate) fn load(
        self,
        weights: &[Weight],
        loader: &mut Loader<'_>,
    ) -> Result<CudaWeight, BackendError> {
        let of = |id: WeightId| &weights[id.index()];
        let kind = match self.node.op {
            Op::Embed { words, positions, types } => {
                let mut table = |id| loader.store(&of(id).to_f32(), self.format);
                Kind::Embeddings(CudaEmbeddings {
                    words: table(words)?,
                    positions: positions.map(&mut table).transpose()?,
                    types: types.map(table).transpose()?,
                })
            }
            Op::Norm { gain, bias, epsilon } => {
                let numbers = norm_numbers(of(gain), bias.map(of), epsilon);
                Kind::Norm(CudaNorm::load(&numbers, loader)?)
            }
            Op::Linear { weight, bias, .. } | Op::GatedLinear { weight, bias, .. } => {
                let shape = self.graph.weight(weight);
                let bias = bias.map(|bias| of(bias).to_f32());
                let bias = bias.unwrap_or_else(|| vec![0.0; shape.rows].into());
                let numbers = LayerNumbers {
                    inputs: shape.columns,
                    outputs: shape.rows,
                    weight: of(weight).to_f32(),
                    bias,
                };
                let gated = matches!(self.node.op, Op::GatedLinear { .. });
                let numbers = if gated { numbers.gates_by_turns() } else { numbers };
                Kind::Linear(match self.layer {
                    LayerForm::Narrow => numbers.load_narrow(loader)?,
                    LayerForm::Wide { input_norm } => {
                        let norm = input_norm.map(|InputNorm { gain, bias, epsilon }| {
                            norm_numbers(of(gain), bias.map(of), epsilon)
                        });
                        numbers.load_wide(norm.as_ref(), self.format, loader)?
                    }
                })
            }
            Op::Attention { bias: Some(AttentionBias::Buckets(bias)), .. } => {
                let RelativeBias { table, reach } = bias;
                let heads = self.graph.weight(table).columns;
                let bias = CudaRelativeBias::load(&of(table).to_f32(), (heads, reach), loader)?;
                Kind::RelativeBias(bias)
            }
            Op::Attention { .. } | Op::Add | Op::Rotate { .. } | Op::Pool(_) => {
                return Err(unexpected("load", "weights of an operation that has some"));
            }
        };
        Ok(CudaWeight(kind))
    }
}

/// Of a norm; without a bias it is zero.
fn norm_numbers<'w>(gain: &'w Weight, bias: Option<&'w Weight>, epsilon: f32) -> NormNumbers<'w> {
    let gain = gain.to_f32();
    let bias = bias.map_or_else(|| vec![0.0; gain.len()].into(), Weight::to_f32);
    NormNumbers { gain, bias, epsilon }
}

impl CudaWeight {
    pub(crate) fn embeddings(&self) -> Result<&CudaEmbeddings, BackendError> {
        match &self.0 {
            Kind::Embeddings(tables) => Ok(tables),
            _ => Err(unexpected("embed", "embedding tables")),
        }
    }

    pub(crate) fn norm(&self) -> Result<&CudaNorm, BackendError> {
        match &self.0 {
            Kind::Norm(norm) => Ok(norm),
            _ => Err(unexpected("normalise", "gain and bias")),
        }
    }

    pub(crate) fn linear(&self) -> Result<&CudaLinear, BackendError> {
        match &self.0 {
            Kind::Linear(layer) => Ok(layer),
            _ => Err(unexpected("linear", "a linear layer")),
        }
    }

    pub(crate) fn relative_bias(&self) -> Result<&CudaRelativeBias, BackendError> {
        match &self.0 {
            Kind::RelativeBias(bias) => Ok(bias),
            _ => Err(unexpected("attention", "relative biases")),
        }
    }
}

fn unexpected(operation: &'static str, expected: &str) -> BackendError {
    BackendError { operation, reason: format!("expected {expected}: please report this") }
}

impl CudaNorm {
    pub(crate) fn load(
        numbers: &NormNumbers<'_>,
        loader: &mut Loader<'_>,
    ) -> Result<Self, BackendError> {
        let mut store = |values: &[f32]| loader.store(values, Format::F32);
        let (gain, bias) = (store(&numbers.gain)?, store(&numbers.bias)?);
        Ok(Self { gain, bias, epsilon: numbers.epsilon })
    }

    pub(crate) fn operands(&self) -> Result<NormOperands<'_>, SourceError> {
        let (gain, bias) = (self.gain.span()?, self.bias.span()?);
        Ok(NormOperands { gain, bias, epsilon: self.epsilon })
    }
}

impl CudaRelativeBias {
    /// Of a table of biases by bucket, for so many heads and distances up to `reach`.
    pub(crate) fn load(
        table: &[f32],
        (heads, reach): (usize, usize),
        loader: &mut Loader<'_>,
    ) -> Result<Self, BackendError> {
        let biases = biases_by_distance(table, heads, reach);
        Ok(Self { table: loader.store(&biases, Format::F32)?, reach })
    }
}

/// Writes tensors to their places.
pub(crate) struct Loader<'a> {
    stream: &'a CudaStream,
    into: &'a mut RegionWriter<CudaBlock>,
}

/// Numbers on the device; they stay there as long as this lives.
#[derive(Debug)]
pub(crate) struct Stored(vecmill_encoder::Stored<CudaBlock>);

impl<'a> Loader<'a> {
    pub(crate) fn new(stream: &'a CudaStream, into: &'a mut RegionWriter<CudaBlock>) -> Self {
        Self { stream, into }
    }

    /// Puts `values` onto the device, rounded to `format`.
    pub(crate) fn store(&mut self, values: &[f32], format: Format) -> Result<Stored, BackendError> {
        match format {
            Format::F32 => self.put(values, f32::to_le_bytes),
            Format::F16 => self.put(values, |value| f16::from_f32(value).to_le_bytes()),
            Format::Bf16 => self.put(values, |value| bf16::from_f32(value).to_le_bytes()),
        }
    }

    fn put<const N: usize>(
        &mut self,
        values: &[f32],
        bytes: impl Fn(f32) -> [u8; N],
    ) -> Result<Stored, BackendError> {
        let bytes: Vec<u8> = values.iter().flat_map(|&value| bytes(value)).collect();
        self.store_bytes(&bytes)
    }

    /// Puts `bytes` onto the device.
    pub(crate) fn store_bytes(&mut self, bytes: &[u8]) -> Result<Stored, BackendError> {
        let place = self.into.place(bytes.len())?;
        let span = self.into.memory().span(place.range());
        let copied = span.and_then(|span| self.stream.copy_from_host(bytes, span));
        let failed =
            |error: SourceError| BackendError { operation: "load", reason: error.to_string() };
        copied.map(|()| Stored(place)).map_err(failed)
    }
}

impl Stored {
    pub(crate) fn span(&self) -> Result<DeviceSpan<'_>, SourceError> {
        let unwritten = || {
            let reason = "the model is not loaded yet: please report this";
            SourceError::new("weights", "span", self.0.range().len(), Cause::Failed, reason)
        };
        self.0.memory().ok_or_else(unwritten)?.span(self.0.range())
    }
}
