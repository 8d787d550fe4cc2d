//! A GPU at work: the steps of [`CudaLowering`]'s programs.
//!
//! Each step is one or two launches behind the others on one stream; nothing waits but
//! [`collect`](Backend::collect). Matrix products are cuBLASLt's where the kernels of `kernels/`,
//! which do everything else, are not faster; small batches are replayed as graphs. `operands` says
//! where the matrices of a step are, `linear` has the linear layers, `gated` those with gates, `rotated` those
//! of queries and keys that are turned, `narrow` those in FP8 and `deferred` those around norms that are left to their readers;
//! `fetch` brings vectors to the host.

mod deferred;
mod fetch;
mod gated;
mod linear;
mod narrow;
mod operands;
mod rotated;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vecmill_encoder::{AttentionBias, Backend, BackendError, Graph, Node, Place, Places};
use vecmill_encoder::{RegionWriter, RepeatKey, Shape, Step, ValueId, WeightId, Weights};
use vecmill_memory::{Cause, Source, SourceError};
use vecmill_model::{Activation, Poolings, Weight, Window};

use crate::driver::DriverError;
use crate::driver::{CapturedGraph, DeviceSpan};
use crate::gemm::{Gemm, HopperGemm, Measured};
use crate::gpu::Gpu;
use crate::graphs::{Graphs, Turn};
use crate::kernels::{Addends, DistanceBias, EmbedOperands, Heads, Kernels, Packed};
use crate::lower::{CudaKernel, CudaLowering, Form, WORKSPACE_ALIGNMENT};
use crate::row_order::RowOrder;
use crate::source::{CudaBlock, CudaSource};
use crate::staging::StagingRing;
use crate::stream::CudaStream;
use crate::weights::{CudaEmbeddings, CudaNorm, CudaRelativeBias, CudaWeight, Loader, Stored};
pub use fetch::CudaFetched;
use linear::{Block, Normed, Product};
use operands::Matrix;

/// Batches of at most so many tokens are replayed as graphs. Above, the host launches a batch's
/// kernels faster than the device runs them.
const GRAPH_TOKENS: usize = 512;

/// Batches in flight: while one runs, the next is made ready.
const IN_FLIGHT: usize = 2;

/// The encoder's operations on one GPU, in one number format.
#[derive(Debug)]
pub struct CudaBackend {
    pub(crate) device: Gpu,
    pub(crate) source: CudaSource,
    pub(crate) stream: CudaStream,
    pub(crate) lowering: CudaLowering,
    pub(crate) kernels: Kernels,
    pub(crate) gemm: Gemm,
    /// Where the device and the format allow it.
    pub(crate) hopper: Option<HopperGemm>,
    pub(crate) measured: Measured,
    pub(crate) row_order: RowOrder,
    pub(crate) staging: Mutex<StagingRing>,
    pub(crate) graphs: Graphs,
}

impl CudaBackend {
    /// The GPU.
    pub fn device(&self) -> &Gpu {
        &self.device
    }

    fn staging(&self) -> MutexGuard<'_, StagingRing> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` where there is no memory for a graph.
    fn capture(
        &self,
        slab: &mut CudaBlock,
        mut steps: impl FnMut(&mut CudaBlock) -> Result<(), BackendError>,
    ) -> Result<Option<CapturedGraph>, BackendError> {
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

/// An operation's error.
fn failed<E: std::error::Error>(operation: &'static str) -> impl Fn(E) -> BackendError {
    move |error| BackendError { operation, reason: error.to_string() }
}

/// The aligned part of a step's scratch memory. Blocks start at multiples of more than its alignment.
fn scratch(slab: &CudaBlock, bytes: Range<usize>) -> Result<DeviceSpan<'_>, SourceError> {
    let start = bytes.start.next_multiple_of(WORKSPACE_ALIGNMENT);
    slab.span(start..bytes.end.max(start))
}

/// Sequences of the batch, whose rows these are.
fn packed<'s>(slab: &'s CudaBlock, places: &Places<'_>) -> Result<Packed<'s>, SourceError> {
    let Shape { tokens, sequences, longest } = places.shape();
    Ok(Packed { starts: slab.span(places.starts())?, sequences, tokens, longest })
}

/// What is added to scores of attention.
#[derive(Clone, Copy)]
enum LoadedBias<'a> {
    Table(&'a CudaRelativeBias),
    Alibi,
}

/// Kernels that go row by row, and attention.
impl CudaBackend {
    fn embed(
        &self,
        slab: &CudaBlock,
        (tables, norm): (&CudaEmbeddings, &CudaNorm),
        places: &Places<'_>,
        output: Matrix,
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let operands = EmbedOperands {
                ids: slab.span(places.ids())?,
                places: slab.span(places.positions())?,
                word_table: tables.words.span()?,
                position_table: tables.positions.as_ref().map(Stored::span).transpose()?,
                type_table: tables.types.as_ref().map(Stored::span).transpose()?,
            };
            Ok((operands, norm.operands()?, self.written(slab, output)?))
        };
        let (operands, norm, written) = operands().map_err(failed("embed"))?;
        self.row_order.forwards();
        let size = (output.rows(), self.columns(output));
        self.kernels.embed(&self.stream, &operands, norm, written, size).map_err(failed("embed"))
    }

    /// Normalises `input`, or its sum with a residual; that sum may be kept, too.
    fn add_norm(
        &self,
        slab: &CudaBlock,
        (input, residual, sum): (Matrix, Option<Matrix>, Option<Matrix>),
        norm: &CudaNorm,
        output: Matrix,
    ) -> Result<(), BackendError> {
        const OPERATION: &str = "add and normalise";
        let wide = |matrix: Option<Matrix>| matrix.map(|matrix| matrix.wide(slab)).transpose();
        let operands = || -> Result<_, SourceError> {
            let (residual, sum) = (wide(residual)?, wide(sum)?);
            let addends = Addends { input: input.wide(slab)?, residual, sum };
            Ok((addends, norm.operands()?, self.written(slab, output)?))
        };
        let (addends, norm, written) = operands().map_err(failed(OPERATION))?;
        let size = ((output.rows(), self.columns(output)), self.row_order.turn());
        let added = self.kernels.add_norm(&self.stream, addends, norm, written, size);
        added.map_err(failed(OPERATION))
    }

    fn add(
        &self,
        slab: &CudaBlock,
        [first, second, output]: [Matrix; 3],
    ) -> Result<(), BackendError> {
        const OPERATION: &str = "add";
        let operands = || -> Result<_, SourceError> {
            Ok([first.wide(slab)?, second.wide(slab)?, output.wide(slab)?])
        };
        let operands = operands().map_err(failed(OPERATION))?;
        self.row_order.forwards();
        let size = (output.rows(), self.columns(output));
        self.kernels.add(&self.stream, operands, size).map_err(failed(OPERATION))
    }

    fn attention(
        &self,
        slab: &CudaBlock,
        places: &Places<'_>,
        [qkv, output]: [Matrix; 2],
        (heads, window, bias): (usize, Window, Option<LoadedBias<'_>>),
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let bias = bias.map(|bias| {
                Ok(match bias {
                    LoadedBias::Table(bias) => DistanceBias::Table(bias.table.span()?, bias.reach),
                    LoadedBias::Alibi => DistanceBias::Alibi,
                })
            });
            let head_size = self.columns(qkv) / 3 / heads.max(1);
            let heads = Heads { heads, head_size, window, bias: bias.transpose()? };
            let attended = self.attended(slab, output)?;
            Ok((qkv.wide(slab)?, attended, packed(slab, places)?, heads))
        };
        let (qkv, output, sequences, heads) = operands().map_err(failed("attention"))?;
        let (rows, row_order) = ((qkv, output), &self.row_order);
        let attended = self.kernels.attention(&self.stream, rows, sequences, heads, row_order);
        attended.map_err(failed("attention"))
    }

    fn pool(
        &self,
        slab: &CudaBlock,
        places: &Places<'_>,
        poolings: Poolings,
        [input, output]: [Matrix; 2],
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            Ok(([input.wide(slab)?, output.wide(slab)?], packed(slab, places)?))
        };
        let (matrices, sequences) = operands().map_err(failed("pool"))?;
        let columns = self.columns(input);
        let pooled = self.kernels.pool(&self.stream, poolings, matrices, sequences, columns);
        pooled.map_err(failed("pool"))
    }

    /// Columns of a matrix that has a wide plane.
    fn columns(&self, matrix: Matrix) -> usize {
        matrix.first.row_bytes / self.lowering.format.bytes()
    }
}

impl Backend for CudaBackend {
    type Lower = CudaLowering;
    type Source = CudaSource;
    type Weight = CudaWeight;
    type Fetched = CudaFetched;

    fn lowering(&self) -> &CudaLowering {
        &self.lowering
    }

    fn source(&self) -> CudaSource {
        self.source.clone()
    }

    fn stream(&self) -> CudaStream {
        self.stream.clone()
    }

    fn load(
        &self,
        graph: &Graph,
        node: &Node,
        weights: &[Weight],
        into: &mut RegionWriter<CudaBlock>,
    ) -> Result<CudaWeight, BackendError> {
        let storing = self.lowering.storing(graph, node);
        storing.load(weights, &mut Loader::new(&self.stream, into))
    }

    fn copy_in(&self, slab: &mut CudaBlock, values: &[u32], at: usize) -> Result<(), BackendError> {
        let span = slab.span(at..at + size_of_val(values)).map_err(failed("copy in"))?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.staging().copy_in(&self.stream, bytes, span).map_err(failed("copy in"))
    }

    fn run(
        &self,
        weights: &Weights<CudaWeight>,
        step: &Step<CudaKernel>,
        places: &Places<'_>,
        slab: &mut CudaBlock,
    ) -> Result<(), BackendError> {
        let Step { kernel, reads, writes, .. } = step;
        let matrix = |value: ValueId, form: Form| Matrix::of(places, value, form);
        let norm = |weight: WeightId| weights.get(weight)?.norm();
        let deferred = |form: Form| match form {
            Form::Deferred { norm: weight } => norm(weight).map(Some),
            Form::Wide | Form::Narrow | Form::Both => Ok(None),
        };
        let scratch = places.scratch();
        match *kernel {
            CudaKernel::EmbedNorm { tables, norm: weight, output } => {
                let loaded = (weights.get(tables)?.embeddings()?, norm(weight)?);
                self.embed(slab, loaded, places, matrix(writes[0], output))
            }
            CudaKernel::Norm { norm: weight, output } => {
                let rows = (matrix(reads[0], Form::Wide), None, None);
                self.add_norm(slab, rows, norm(weight)?, matrix(writes[0], output))
            }
            CudaKernel::AddNorm { norm: weight, output, keeps_sum } => {
                let [input, residual] = [reads[0], reads[1]].map(|v| matrix(v, Form::Wide));
                let sum = keeps_sum.then(|| matrix(writes[1], Form::Wide));
                let rows = (input, Some(residual), sum);
                self.add_norm(slab, rows, norm(weight)?, matrix(writes[0], output))
            }
            CudaKernel::Add => {
                self.add(slab, [reads[0], reads[1], writes[0]].map(|v| matrix(v, Form::Wide)))
            }
            CudaKernel::GatedLinear { layer, activation, input, output } => {
                let layer = weights.get(layer)?.linear()?;
                let (input, output) = (matrix(reads[0], input), matrix(writes[0], output));
                self.multiply_gated(slab, &Product { layer, activation, input, output, scratch })
            }
            CudaKernel::Gate { activation, group, output } => {
                let matrices = [matrix(reads[0], Form::Wide), matrix(writes[0], output)];
                self.gate(slab, (activation, group), matrices)
            }
            CudaKernel::RotatedLinear { layer, input, heads, rotary } => {
                let layer = weights.get(layer)?.linear()?;
                let activation = Activation::Identity;
                let (input, output) = (matrix(reads[0], input), matrix(writes[0], Form::Wide));
                let op = Product { layer, activation, input, output, scratch };
                self.multiply_rotated(slab, &op, places, (heads, rotary))
            }
            CudaKernel::Rotate { heads, rotary } => {
                let matrices = [reads[0], writes[0]].map(|v| matrix(v, Form::Wide));
                self.rotate(slab, places, matrices, (heads, rotary))
            }
            CudaKernel::Linear { layer, activation, input, output } => {
                let layer = weights.get(layer)?.linear()?;
                let (input, output) = (matrix(reads[0], input), matrix(writes[0], output));
                self.multiply(slab, &Product { layer, activation, input, output, scratch })
            }
            CudaKernel::LinearNorm { layer, norm: weight, input, residual, output } => {
                let op = Normed {
                    layer: weights.get(layer)?.linear()?,
                    input: matrix(reads[0], input),
                    residual: matrix(reads[1], residual),
                    residual_norm: deferred(residual)?,
                    norm: norm(weight)?,
                    output: matrix(writes[0], output),
                    scratch,
                };
                self.multiply_norm(slab, &op)
            }
            CudaKernel::FeedForward {
                up,
                activation,
                down,
                norm: weight,
                input,
                between,
                output,
            } => {
                let op = Block {
                    up: weights.get(up)?.linear()?,
                    activation,
                    down: weights.get(down)?.linear()?,
                    input: matrix(reads[0], input),
                    input_norm: deferred(input)?,
                    norm: norm(weight)?,
                    between: between.map(|between| matrix(writes[1], between)),
                    output: matrix(writes[0], output),
                    scratch,
                };
                self.multiply_twice(slab, &op)
            }
            CudaKernel::Normalize { norm: weight } => {
                let form = Form::Deferred { norm: weight };
                let (input, output) = (matrix(reads[0], form), matrix(writes[0], Form::Wide));
                self.normalize_deferred(slab, [input, output], norm(weight)?)
            }
            CudaKernel::Attention { heads, window, bias, output } => {
                let bias = bias.map(|bias| match bias {
                    AttentionBias::Buckets(bias) => {
                        Ok(LoadedBias::Table(weights.get(bias.table)?.relative_bias()?))
                    }
                    AttentionBias::Alibi => Ok(LoadedBias::Alibi),
                });
                let matrices = [matrix(reads[0], Form::Wide), matrix(writes[0], output)];
                self.attention(slab, places, matrices, (heads, window, bias.transpose()?))
            }
            CudaKernel::Pool(poolings) => {
                let matrices = [matrix(reads[0], Form::Wide), matrix(writes[0], Form::Wide)];
                self.pool(slab, places, poolings, matrices)
            }
            CudaKernel::Missing(what) => {
                let reason = format!("GPUs don't compute {what} yet: run this model on the CPU");
                Err(BackendError { operation: "a step", reason })
            }
        }
    }

    fn fetch(&self, slab: &mut CudaBlock, from: Place) -> Result<CudaFetched, BackendError> {
        self.start_fetch(slab, from)
    }

    fn collect(&self, fetched: CudaFetched, into: &mut [f32]) -> Result<(), BackendError> {
        self.finish_fetch(fetched, into)
    }

    fn in_flight(&self) -> usize {
        IN_FLIGHT
    }

    fn tune(&self, on: bool) {
        self.measured.tune(on);
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
        key: RepeatKey,
        mut steps: impl FnMut(&mut CudaBlock) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        if !self.pads(key.shape) || self.measured.tuning() {
            return steps(slab);
        }
        let address = self.source.address(slab);
        let mut graph = match self.graphs.turn(key, address) {
            Turn::Step => return steps(slab),
            Turn::Capture => match self.capture(slab, &mut steps)? {
                Some(graph) => graph,
                None => return steps(slab),
            },
            Turn::Replay(graph) => graph,
        };
        let launched = self.stream.raw().launch(&mut graph);
        launched.map_err(|error| failed("replay")(error.of(self.device.name(), 0)))?;
        self.graphs.put(key, address, graph);
        Ok(())
    }
}
