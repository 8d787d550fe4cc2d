//! The encoder's operations on a GPU.
//!
//! Each operation is one or two launches behind the others on one stream; nothing waits but
//! [`collect`](Backend::collect). Matrix products are cuBLASLt's where the kernels of `kernels/`,
//! which do everything else, are not faster; small batches are replayed as graphs. `open` makes a
//! device ready. `linear` has the linear layers, `narrow` those in FP8 and `deferred` those around
//! normalisations that are deferred; `ways` remembers what was measured to be faster. `fetch` brings vectors to the host.

mod deferred;
mod fetch;
mod linear;
mod narrow;
mod open;
mod ways;

use std::sync::{Mutex, MutexGuard, PoisonError};

use vecmill_encoder::{
    AddNorm, Attention, Backend, BackendError, Buffer, Embed, EmbeddingTensors, FeedForward,
    Indices, Linear, LinearAddNorm, NormTensors, Normalize, Pool, Precision, RegionWriter,
    Sequences, Shape, StackTensors, Workspace, biases_by_distance,
};
use vecmill_memory::{Cause, Source, SourceError};
use vecmill_model::{DType, TensorView};

use crate::device::Device;
use crate::driver::{DeviceSpan, Graph};
use crate::error::DriverError;
use crate::gemm::{Format, Gemm, HopperGemm};
use crate::graphs::{Graphs, Turn};
use crate::kernels::{EmbedOperands, Heads, Kernels, NormOperands, Packed};
use crate::lower::{CudaLowering, WORKSPACE_ALIGNMENT};
use crate::source::{CudaBlock, CudaSource};
use crate::staging::StagingRing;
use crate::stream::CudaStream;
use crate::sweeps::Sweeps;
use crate::weights::{Loader, Tensor};
pub use fetch::CudaFetched;
pub use linear::CudaLinear;
pub use open::OpenError;
use ways::Ways;

/// Batches of at most so many tokens are replayed as graphs. Above, the host launches a batch's
/// kernels faster than the device runs them.
const GRAPH_TOKENS: usize = 512;

/// Batches in flight: while one runs, the next is made ready.
const IN_FLIGHT: usize = 2;

/// The encoder's operations on one GPU, in one number format.
#[derive(Debug)]
pub struct CudaBackend {
    device: Device,
    source: CudaSource,
    stream: CudaStream,
    lowering: CudaLowering,
    kernels: Kernels,
    gemm: Gemm,
    /// Where the device and the format allow it.
    hopper: Option<HopperGemm>,
    ways: Ways,
    sweeps: Sweeps,
    staging: Mutex<StagingRing>,
    graphs: Graphs,
}

/// A layer normalisation's parameters on the device.
#[derive(Debug)]
pub struct CudaNorm {
    gain: Tensor,
    bias: Tensor,
    epsilon: f32,
}

/// Embedding tables on the device.
#[derive(Debug)]
pub struct CudaEmbeddings {
    words: Tensor,
    positions: Tensor,
    /// Row 0 of the token types.
    types: Option<Tensor>,
    norm: CudaNorm,
}

/// Relative position biases on the device, by distance.
#[derive(Debug)]
pub struct CudaRelativeBias {
    table: Tensor,
    reach: usize,
}

impl CudaBackend {
    /// The GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn staging(&self) -> MutexGuard<'_, StagingRing> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span<'s>(&self, slab: &'s CudaBlock, buffer: Buffer) -> Result<DeviceSpan<'s>, SourceError> {
        slab.span(buffer.offset..buffer.offset + buffer.elements() * self.lowering.format.bytes())
    }

    fn packed<'s>(
        &self,
        slab: &'s CudaBlock,
        sequences: Sequences,
        tokens: usize,
    ) -> Result<Packed<'s>, SourceError> {
        let Sequences { starts, longest } = sequences;
        let sequences = starts.length.saturating_sub(1);
        Ok(Packed { starts: slab.span(bytes_of(starts))?, sequences, tokens, longest })
    }

    fn loader<'a>(&'a self, into: &'a mut RegionWriter<CudaBlock>) -> Loader<'a> {
        Loader::new(&self.stream, into)
    }

    /// `None` where there is no memory for a graph.
    fn capture(
        &self,
        slab: &mut CudaBlock,
        mut steps: impl FnMut(&mut CudaBlock) -> Result<(), BackendError>,
    ) -> Result<Option<Graph>, BackendError> {
        let captured = self.stream.raw().capture(|| steps(slab).map_err(CaptureError::Step));
        match captured {
            Ok(graph) => Ok(Some(graph)),
            Err(CaptureError::Driver(error)) if error.cause() == Cause::Exhausted => Ok(None),
            Err(CaptureError::Step(error)) => Err(error),
            Err(CaptureError::Driver(error)) => {
                Err(failed("capture")(error.of(self.device.name(), 0)))
            }
        }
    }
}

enum CaptureError {
    Step(BackendError),
    Driver(DriverError),
}

impl From<DriverError> for CaptureError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl CudaNorm {
    fn load(tensors: &NormTensors, loader: &mut Loader<'_>) -> Result<Self, BackendError> {
        let mut store = |tensor: &TensorView| loader.store(&tensor.to_f32(), Format::F32);
        let &NormTensors { ref gain, ref bias, epsilon } = tensors;
        Ok(Self { gain: store(gain)?, bias: store(bias)?, epsilon })
    }

    fn operands(&self) -> Result<NormOperands<'_>, SourceError> {
        let (gain, bias) = (self.gain.span()?, self.bias.span()?);
        Ok(NormOperands { gain, bias, epsilon: self.epsilon })
    }
}

/// An operation's error.
fn failed<E: std::error::Error>(operation: &'static str) -> impl Fn(E) -> BackendError {
    move |error| BackendError { operation, reason: error.to_string() }
}

fn bytes_of(indices: Indices) -> std::ops::Range<usize> {
    indices.offset..indices.offset + indices.length * size_of::<u32>()
}

/// The aligned part of a workspace. Blocks start at multiples of more than its alignment.
fn scratch(slab: &CudaBlock, workspace: Workspace) -> Result<DeviceSpan<'_>, SourceError> {
    let Workspace { offset, bytes } = workspace;
    let start = offset.next_multiple_of(WORKSPACE_ALIGNMENT);
    slab.span(start..(offset + bytes).max(start))
}

impl Backend for CudaBackend {
    type Lower = CudaLowering;
    type Source = CudaSource;
    type Linear = CudaLinear;
    type Norm = CudaNorm;
    type Embeddings = CudaEmbeddings;
    type RelativeBias = CudaRelativeBias;
    type Fetched = CudaFetched;

    fn source(&self) -> CudaSource {
        self.source.clone()
    }

    fn stream(&self) -> CudaStream {
        self.stream.clone()
    }

    fn lowering(&self) -> &CudaLowering {
        &self.lowering
    }

    fn precision(&self) -> Precision {
        match self.lowering.format {
            _ if self.lowering.fp8 => Precision::of_tensor_cores(DType::F8E4M3),
            Format::F16 => Precision::of_tensor_cores(DType::F16),
            Format::Bf16 => Precision::of_tensor_cores(DType::BF16),
            Format::F32 => Precision::of(DType::F32),
        }
    }

    fn in_flight(&self) -> usize {
        IN_FLIGHT
    }

    fn load_linear(
        &self,
        stack: StackTensors<'_>,
        into: &mut RegionWriter<CudaBlock>,
    ) -> Result<CudaLinear, BackendError> {
        self.stack(stack, &mut self.loader(into))
    }

    fn load_norm(
        &self,
        tensors: &NormTensors,
        into: &mut RegionWriter<CudaBlock>,
    ) -> Result<CudaNorm, BackendError> {
        CudaNorm::load(tensors, &mut self.loader(into))
    }

    fn load_embeddings(
        &self,
        tensors: &EmbeddingTensors,
        into: &mut RegionWriter<CudaBlock>,
    ) -> Result<CudaEmbeddings, BackendError> {
        let (format, mut loader) = (self.lowering.format, self.loader(into));
        let mut table = |table: &TensorView| loader.store(&table.to_f32(), format);
        Ok(CudaEmbeddings {
            words: table(&tensors.words)?,
            positions: table(&tensors.positions)?,
            types: tensors.types.as_ref().map(table).transpose()?,
            norm: CudaNorm::load(&tensors.norm, &mut loader)?,
        })
    }

    fn load_relative_bias(
        &self,
        table: &TensorView,
        max_distance: usize,
        into: &mut RegionWriter<CudaBlock>,
    ) -> Result<CudaRelativeBias, BackendError> {
        let heads = table.shape().last().copied().unwrap_or(0);
        let biases = biases_by_distance(&table.to_f32(), heads, max_distance);
        let table = self.loader(into).store(&biases, Format::F32)?;
        Ok(CudaRelativeBias { table, reach: max_distance })
    }

    fn tune(&self, on: bool) {
        self.ways.tune(on);
    }

    fn ways_taken(&self) -> u64 {
        let own = self.hopper.as_ref().map_or(0, HopperGemm::ways_taken);
        (self.kernels.ways_taken() + self.gemm.ways_taken() + own) as u64
    }

    fn pads(&self, shape: Shape) -> bool {
        shape.tokens <= GRAPH_TOKENS
    }

    fn repeat(
        &self,
        slab: &mut CudaBlock,
        shape: Shape,
        mut steps: impl FnMut(&mut CudaBlock) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        if !self.pads(shape) || self.ways.tuning() {
            return steps(slab);
        }
        let address = self.source.address(slab);
        let mut graph = match self.graphs.turn(shape, address) {
            Turn::Step => return steps(slab),
            Turn::Capture => match self.capture(slab, &mut steps)? {
                Some(graph) => graph,
                None => return steps(slab),
            },
            Turn::Replay(graph) => graph,
        };
        let launched = self.stream.raw().launch(&mut graph);
        launched.map_err(|error| failed("replay")(error.of(self.device.name(), 0)))?;
        self.graphs.put(shape, address, graph);
        Ok(())
    }

    fn copy_in(
        &self,
        slab: &mut CudaBlock,
        values: &[u32],
        into: Indices,
    ) -> Result<(), BackendError> {
        let span = slab.span(bytes_of(into)).map_err(failed("copy in"))?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.staging().copy_in(&self.stream, bytes, span).map_err(failed("copy in"))
    }

    fn embed(&self, slab: &mut CudaBlock, op: &Embed<'_, Self>) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let tables = op.tables;
            let operands = EmbedOperands {
                ids: slab.span(bytes_of(op.ids))?,
                positions: slab.span(bytes_of(op.positions))?,
                word_table: tables.words.span()?,
                position_table: tables.positions.span()?,
                type_row: tables.types.as_ref().map(Tensor::span).transpose()?,
            };
            Ok((operands, tables.norm.operands()?, self.written(slab, op.output)?))
        };
        let (operands, norm, output) = operands().map_err(failed("embed"))?;
        self.sweeps.forwards();
        let size = (op.output.rows, op.output.columns);
        self.kernels.embed(&self.stream, &operands, norm, output, size).map_err(failed("embed"))
    }

    fn linear(&self, slab: &mut CudaBlock, op: &Linear<'_, Self>) -> Result<(), BackendError> {
        self.multiply(slab, op)
    }

    fn linear_add_norm(
        &self,
        slab: &mut CudaBlock,
        op: &LinearAddNorm<'_, Self>,
    ) -> Result<(), BackendError> {
        self.multiply_norm(slab, op)
    }

    fn normalize(
        &self,
        slab: &mut CudaBlock,
        op: &Normalize<'_, Self>,
    ) -> Result<(), BackendError> {
        self.normalize_deferred(slab, op)
    }

    fn feed_forward(
        &self,
        slab: &mut CudaBlock,
        op: &FeedForward<'_, Self>,
    ) -> Result<(), BackendError> {
        self.multiply_twice(slab, op)
    }

    fn attention(
        &self,
        slab: &mut CudaBlock,
        op: &Attention<'_, Self>,
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let bias = op.bias.map(|bias| Ok((bias.table.span()?, bias.reach))).transpose()?;
            let head_size = op.output.columns / op.heads.max(1);
            let heads = Heads { heads: op.heads, head_size, bias };
            let output = self.attended(slab, op.output)?;
            let sequences = self.packed(slab, op.sequences, op.qkv.rows)?;
            Ok((self.span(slab, op.qkv)?, output, sequences, heads))
        };
        let (qkv, output, sequences, heads) = operands().map_err(failed("attention"))?;
        let (rows, sweeps) = ((qkv, output), &self.sweeps);
        let attended = self.kernels.attention(&self.stream, rows, sequences, heads, sweeps);
        attended.map_err(failed("attention"))
    }

    fn add_norm(&self, slab: &mut CudaBlock, op: &AddNorm<'_, Self>) -> Result<(), BackendError> {
        const OPERATION: &str = "add and normalise";
        let operands = || -> Result<_, SourceError> {
            let addends = [self.span(slab, op.input)?, self.span(slab, op.residual)?];
            Ok((addends, op.norm.operands()?, self.written(slab, op.output)?))
        };
        let (addends, norm, output) = operands().map_err(failed(OPERATION))?;
        let size = ((op.output.rows, op.output.columns), self.sweeps.turn());
        let added = self.kernels.add_norm(&self.stream, addends, norm, output, size);
        added.map_err(failed(OPERATION))
    }

    fn pool(&self, slab: &mut CudaBlock, op: &Pool) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let matrices = [self.span(slab, op.input)?, self.span(slab, op.output)?];
            Ok((matrices, self.packed(slab, op.sequences, op.input.rows)?))
        };
        let (matrices, sequences) = operands().map_err(failed("pool"))?;
        let columns = op.input.columns;
        let pooled = self.kernels.pool(&self.stream, op.pooling, matrices, sequences, columns);
        pooled.map_err(failed("pool"))
    }

    fn fetch(&self, slab: &mut CudaBlock, from: Buffer) -> Result<CudaFetched, BackendError> {
        self.start_fetch(slab, from)
    }

    fn collect(&self, fetched: CudaFetched, into: &mut [f32]) -> Result<(), BackendError> {
        self.finish_fetch(fetched, into)
    }
}
