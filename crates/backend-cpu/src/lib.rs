//! The encoder operations on the CPU.
//!
//! - [`CpuBackend`] implements [`vecmill_encoder::Backend`] over main memory, on threads of its own.
//! - `matmul` multiplies with packed weights; `attention` uses the same kernel; `rows` holds what
//!   goes row by row; `math` the elementary functions; `tasks` deals work out to threads; `slab`
//!   hands out disjoint views of a batch's memory; `lower` says what all of it takes.
//!
//! The choice behind it: no C library and no assembly. Vector code is safe Rust that `pulp` compiles
//! once for each instruction set (AVX-512, AVX2, NEON, baseline) and picks when the program runs, so
//! one binary is fast everywhere.
//!
//! A row's result does not depend on the other rows of the batch or on the number of threads: it is
//! the same to the last bit.

mod attention;
mod lower;
mod math;
mod matmul;
mod rows;
mod simd;
mod slab;
mod tasks;

use std::ops::Range;

use pulp::Arch;
use rayon::ThreadPool;
use rayon::prelude::*;
use vecmill_encoder::{
    AddNorm, Attention, Backend, BackendError, Buffer, Embed, EmbeddingTensors, Indices, Linear,
    NormTensors, Pool, Precision, RegionWriter, StackTensors,
};
use vecmill_memory::{HostBlock, HostSource};
use vecmill_model::{DType, TensorView};

pub use attention::RelativeBias;
pub use lower::CpuLowering;
pub use rows::{Embeddings, Norm};
use simd::vectorised;
use slab::{Place, as_indices, views};

/// A loaded linear layer: packed weights and bias.
#[derive(Debug)]
pub struct PackedLinear(matmul::Panels);

/// Rows that one task normalises: enough to outweigh being dealt out.
const ROWS_PER_TASK: usize = 64;

/// Encoder operations on this machine's processor, in `f32`.
///
/// ```
/// use vecmill_backend_cpu::CpuBackend;
///
/// let backend = CpuBackend::new(2)?;
/// assert_eq!(backend.threads(), 2);
/// # Ok::<(), vecmill_encoder::BackendError>(())
/// ```
#[derive(Debug)]
pub struct CpuBackend {
    arch: Arch,
    lowering: CpuLowering,
    threads: ThreadPool,
}

impl CpuBackend {
    /// A backend with its own `threads`, at least one.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> Result<Self, BackendError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|index| format!("cpu-{index}"))
            .build()
            .map_err(|error| BackendError { operation: "start", reason: error.to_string() })?;
        let lowering = CpuLowering::new(threads.current_num_threads());
        Ok(Self { arch: lowering.arch, lowering, threads })
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// The vector instructions that kernels use on this processor, for example `AVX2`.
    pub fn detected_instructions() -> &'static str {
        instructions(Arch::new())
    }

    /// Deals `rows` of `output` out to threads in runs of [`ROWS_PER_TASK`].
    fn by_rows(
        &self,
        columns: usize,
        output: &mut [f32],
        work: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) {
        let run = |index: usize, rows: &mut [f32]| {
            let first = index * ROWS_PER_TASK;
            work(first..first + rows.len() / columns, rows);
        };
        if output.len() <= ROWS_PER_TASK * columns {
            return run(0, output);
        }
        let chunks = output.par_chunks_mut(ROWS_PER_TASK * columns).enumerate();
        chunks.for_each(|(index, rows)| run(index, rows));
    }

    /// Columns per task so that a product of `rows` keeps all threads busy: all of them where rows
    /// alone make tasks enough, else about two strips of whole panels for each thread.
    fn strip_width(&self, rows: usize, weights: &matmul::Panels) -> usize {
        let chunks = rows.div_ceil(matmul::ROW_CHUNK);
        let wanted = if self.threads() == 1 { 1 } else { 2 * self.threads() };
        let strips = wanted.div_ceil(chunks.max(1));
        weights.outputs().div_ceil(strips).next_multiple_of(weights.width())
    }
}

/// The name of the instruction set that kernels are compiled for.
fn instructions(arch: Arch) -> &'static str {
    struct Lanes;
    impl pulp::WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: pulp::Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    match (arch.dispatch(Lanes), cfg!(target_arch = "x86_64")) {
        (16, true) => "AVX-512",
        (8, true) => "AVX2",
        (4, false) => "NEON",
        _ => "baseline",
    }
}

impl Backend for CpuBackend {
    type Lower = CpuLowering;
    type Source = HostSource;
    type Linear = PackedLinear;
    type Norm = Norm;
    type Embeddings = Embeddings;
    type RelativeBias = RelativeBias;
    type Fetched = Vec<f32>;

    fn source(&self) -> HostSource {
        HostSource
    }

    fn stream(&self) {}

    fn lowering(&self) -> &CpuLowering {
        &self.lowering
    }

    fn precision(&self) -> Precision {
        Precision::of(DType::F32)
    }

    fn load_linear(
        &self,
        stack: StackTensors<'_>,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<PackedLinear, BackendError> {
        let (parts, shape) = (stack.parts, stack.shape());
        let weights: Vec<_> = parts.iter().map(|part| part.weight.to_f32()).collect();
        let rows = weights.iter().flat_map(|weight| weight.chunks_exact(shape.inputs.max(1)));
        let bias = parts.iter().flat_map(|part| {
            let outputs = part.weight.shape().first().copied().unwrap_or(0);
            part.bias.as_ref().map_or_else(|| vec![0.0; outputs], |bias| bias.to_f32().into_owned())
        });
        matmul::Panels::pack(self.arch, shape, rows, bias, into).map(PackedLinear)
    }

    fn load_norm(
        &self,
        tensors: &NormTensors,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Norm, BackendError> {
        Norm::new(tensors, into)
    }

    fn load_embeddings(
        &self,
        tensors: &EmbeddingTensors,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Embeddings, BackendError> {
        Embeddings::new(tensors, into)
    }

    fn load_relative_bias(
        &self,
        table: &TensorView,
        max_distance: usize,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<RelativeBias, BackendError> {
        let heads = table.shape().last().copied().unwrap_or(0);
        RelativeBias::new(&table.to_f32(), heads, max_distance, into)
    }

    fn run_batch<R: Send>(&self, operations: impl FnOnce() -> R + Send) -> R {
        self.threads.install(operations)
    }

    fn copy_in(
        &self,
        slab: &mut HostBlock,
        values: &[u32],
        into: Indices,
    ) -> Result<(), BackendError> {
        let [target] = views(slab, "copy in", [into.range()])?;
        bytemuck::cast_slice_mut(target).copy_from_slice(values);
        Ok(())
    }

    fn embed(&self, slab: &mut HostBlock, op: &Embed<'_, Self>) -> Result<(), BackendError> {
        let places = [op.ids.range(), op.positions.range(), op.output.range()];
        let [ids, positions, output] = views(slab, "embed", places)?;
        let (ids, positions) = (as_indices(ids), as_indices(positions));
        self.by_rows(op.tables.columns(), output, |rows, output| {
            let (ids, positions) = (&ids[rows.clone()], &positions[rows]);
            vectorised(
                self.arch,
                #[inline(always)]
                || op.tables.write(ids, positions, output),
            );
        });
        Ok(())
    }

    fn linear(&self, slab: &mut HostBlock, op: &Linear<'_, Self>) -> Result<(), BackendError> {
        let [input, output] = views(slab, "linear", [op.input.range(), op.output.range()])?;
        let weights = &op.weights.0;
        let (inputs, outputs) = (weights.inputs(), weights.outputs());
        let width = self.strip_width(op.input.rows, weights);
        let chunk = matmul::ROW_CHUNK;
        let chunks = input.chunks(chunk * inputs).zip(output.chunks_mut(chunk * outputs));
        let tasks = chunks.flat_map(|(input, output)| {
            let strips = tasks::strips(output, outputs, width).into_iter();
            strips.map(move |(first, output)| (&*input, first, output))
        });
        tasks::for_each(
            tasks.collect(),
            &mut [],
            self.threads(),
            |(input, first, mut output), _| {
                let rows: Vec<&[f32]> = input.chunks_exact(inputs).collect();
                matmul::multiply(self.arch, &rows, weights, op.activation, first, &mut output);
            },
        );
        Ok(())
    }

    fn attention(
        &self,
        slab: &mut HostBlock,
        op: &Attention<'_, Self>,
    ) -> Result<(), BackendError> {
        let starts = op.sequences.starts.range();
        let places = [op.qkv.range(), starts, op.output.range(), op.workspace.range()];
        let [qkv, starts, output, workspace] = views(slab, "attention", places)?;
        let heads = attention::Heads {
            arch: self.arch,
            heads: op.heads,
            head_size: op.output.columns / op.heads,
            bias: op.bias,
        };
        let tasks = heads.tasks(qkv, as_indices(starts), output);
        tasks::for_each(tasks, workspace, self.threads(), |task, scratch| heads.run(task, scratch));
        Ok(())
    }

    fn add_norm(&self, slab: &mut HostBlock, op: &AddNorm<'_, Self>) -> Result<(), BackendError> {
        const NAME: &str = "add and normalise";
        // In place; the two may differ in the copies that readers want, of which there is one here.
        if op.input.range() != op.output.range() {
            let [input, output] = views(slab, NAME, [op.input.range(), op.output.range()])?;
            output.copy_from_slice(input);
        }
        let [residual, output] = views(slab, NAME, [op.residual.range(), op.output.range()])?;
        let columns = op.output.columns;
        let residual = &*residual;
        self.by_rows(columns, output, |rows, output| {
            let residual = &residual[rows.start * columns..rows.end * columns];
            vectorised(
                self.arch,
                #[inline(always)]
                || op.norm.add_and_apply(residual, output, columns),
            );
        });
        Ok(())
    }

    fn pool(&self, slab: &mut HostBlock, op: &Pool) -> Result<(), BackendError> {
        let places = [op.input.range(), op.sequences.starts.range(), op.output.range()];
        let [input, starts, output] = views(slab, "pool", places)?;
        let (input, starts) = (&*input, as_indices(starts));
        self.by_rows(op.output.columns, output, |sequences, output| {
            let starts = &starts[sequences.start..=sequences.end];
            vectorised(
                self.arch,
                #[inline(always)]
                || rows::pool(op.pooling, input, starts, output, op.input.columns),
            );
        });
        Ok(())
    }

    fn fetch(&self, slab: &mut HostBlock, from: Buffer) -> Result<Vec<f32>, BackendError> {
        let [source] = views(slab, "fetch", [from.range()])?;
        Ok(source.to_vec())
    }

    fn collect(&self, fetched: Vec<f32>, into: &mut [f32]) -> Result<(), BackendError> {
        into.copy_from_slice(&fetched);
        Ok(())
    }
}
