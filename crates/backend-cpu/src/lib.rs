//! The encoder operations on the CPU.
//!
//! - [`CpuBackend`] runs the steps of [`CpuLowering`]'s programs in main memory, on threads of its own.
//! - `matmul` multiplies with packed weights; `attention` uses the same kernel; `rotate` turns what it
//!   reads; `rows` holds what goes row by row; `math` the elementary functions; `threads` deals disjoint views of a batch's
//!   memory out to threads; `weights` says what is stored of a model, `lower` which kernels compute
//!   it.
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
mod rotate;
mod rows;
mod threads;
mod weights;

use std::ops::Range;

use pulp::Arch;
use rayon::ThreadPool;
use rayon::prelude::*;
use vecmill_encoder::{AttentionBias, Backend, Graph, Node, Place, Places, Step, ValueId, Weights};
use vecmill_encoder::{BackendError, RegionWriter};
use vecmill_memory::{HostBlock, HostSource};
use vecmill_model::{Activation, Poolings, Weight};

use attention::{Attention, Bias};
pub use lower::{CpuKernel, CpuLowering};
use rotate::Rotation;
use threads::{as_indices, vectorised, view, views};
pub use weights::CpuWeight;

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

/// The kernels, each on operands at byte ranges of the slab.
impl CpuBackend {
    fn embed(
        &self,
        tables: &rows::Tables,
        norm: Option<&rows::Norm>,
        operands: [Range<usize>; 3],
        slab: &mut HostBlock,
    ) -> Result<(), BackendError> {
        let [ids, positions, output] = views(slab, "embed", operands)?;
        let (ids, positions) = (as_indices(ids), as_indices(positions));
        self.by_rows(tables.columns(), output, |rows, output| {
            let (ids, positions) = (&ids[rows.clone()], &positions[rows]);
            vectorised(
                self.arch,
                #[inline(always)]
                || tables.write(ids, positions, norm, output),
            );
        });
        Ok(())
    }

    fn linear(
        &self,
        weights: &matmul::Panels,
        activation: Activation,
        operands: [Range<usize>; 2],
        slab: &mut HostBlock,
    ) -> Result<(), BackendError> {
        let [input, output] = views(slab, "linear", operands)?;
        let (inputs, outputs) = (weights.inputs(), weights.outputs());
        let width = self.strip_width(input.len() / inputs.max(1), weights);
        let chunk = matmul::ROW_CHUNK;
        let chunks = input.chunks(chunk * inputs).zip(output.chunks_mut(chunk * outputs));
        let tasks = chunks.flat_map(|(input, output)| {
            let strips = threads::strips(output, outputs, width).into_iter();
            strips.map(move |(first, output)| (&*input, first, output))
        });
        threads::for_each(
            tasks.collect(),
            &mut [],
            self.threads(),
            |(input, first, mut output), _| {
                let rows: Vec<&[f32]> = input.chunks_exact(inputs).collect();
                matmul::multiply(self.arch, &rows, weights, activation, first, &mut output);
            },
        );
        Ok(())
    }

    fn attention(
        &self,
        attention: &Attention<'_>,
        operands: [Range<usize>; 4],
        slab: &mut HostBlock,
    ) -> Result<(), BackendError> {
        let [qkv, starts, output, workspace] = views(slab, "attention", operands)?;
        let tasks = attention.tasks(qkv, as_indices(starts), output);
        threads::for_each(tasks, workspace, self.threads(), |task, scratch| {
            attention.run(task, scratch);
        });
        Ok(())
    }

    /// In place.
    fn rotate(
        &self,
        rotation: &Rotation,
        operands: [Range<usize>; 2],
        slab: &mut HostBlock,
    ) -> Result<(), BackendError> {
        let [starts, qkv] = views(slab, "rotate", operands)?;
        let tasks = rotation.tasks(qkv, as_indices(starts));
        threads::for_each(tasks, &mut [], self.threads(), |task, _| rotation.run(task));
        Ok(())
    }

    /// Adds the residual, in place, and normalises.
    fn add(
        &self,
        slab: &mut HostBlock,
        operands: [Range<usize>; 2],
        columns: usize,
        norm: Option<&rows::Norm>,
    ) -> Result<(), BackendError> {
        let [residual, output] = views(slab, "add and normalise", operands)?;
        let residual = &*residual;
        self.by_rows(columns, output, |rows, output| {
            let residual = &residual[rows.start * columns..rows.end * columns];
            vectorised(
                self.arch,
                #[inline(always)]
                || rows::add(residual, norm, output, columns),
            );
        });
        Ok(())
    }

    /// In place, rows whole or their first slices of a width.
    fn normalise(
        &self,
        slab: &mut HostBlock,
        rows: Range<usize>,
        (columns, width): (usize, Option<usize>),
        norm: &rows::Norm,
    ) -> Result<(), BackendError> {
        let rows = view(slab, "normalise", rows)?;
        self.by_rows(columns, rows, |_, rows| {
            vectorised(
                self.arch,
                #[inline(always)]
                || match width {
                    None => norm.apply(rows, columns),
                    Some(width) => norm.apply_to_slices(rows, columns, width),
                },
            );
        });
        Ok(())
    }

    fn pool(
        &self,
        poolings: Poolings,
        columns: usize,
        operands: [Range<usize>; 3],
        slab: &mut HostBlock,
    ) -> Result<(), BackendError> {
        let [input, starts, output] = views(slab, "pool", operands)?;
        let (input, starts) = (&*input, as_indices(starts));
        self.by_rows(poolings.count() * columns, output, |sequences, output| {
            let starts = &starts[sequences.start..=sequences.end];
            vectorised(
                self.arch,
                #[inline(always)]
                || rows::pool(poolings, input, starts, output, columns),
            );
        });
        Ok(())
    }
}

impl Backend for CpuBackend {
    type Lower = CpuLowering;
    type Source = HostSource;
    type Weight = CpuWeight;
    type Fetched = Vec<f32>;

    fn lowering(&self) -> &CpuLowering {
        &self.lowering
    }

    fn source(&self) -> HostSource {
        HostSource
    }

    fn stream(&self) {}

    fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.threads.install(work)
    }

    fn load(
        &self,
        graph: &Graph,
        node: &Node,
        weights: &[Weight],
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<CpuWeight, BackendError> {
        CpuWeight::load(self.arch, (graph, node), weights, into)
    }

    fn copy_in(&self, slab: &mut HostBlock, values: &[u32], at: usize) -> Result<(), BackendError> {
        let target = view(slab, "copy in", at..at + size_of_val(values))?;
        bytemuck::cast_slice_mut(target).copy_from_slice(values);
        Ok(())
    }

    fn run(
        &self,
        weights: &Weights<CpuWeight>,
        step: &Step<CpuKernel>,
        places: &Places<'_>,
        slab: &mut HostBlock,
    ) -> Result<(), BackendError> {
        let Step { kernel, reads, writes, .. } = step;
        let value = |id: ValueId| places.plane(id, 0).bytes();
        let output = value(writes[0]);
        match *kernel {
            CpuKernel::Embed { tables, norm } => {
                let norm = norm.map(|norm| weights.get(norm)?.norm()).transpose()?;
                let tables = weights.get(tables)?.tables()?;
                self.embed(tables, norm, [places.ids(), places.positions(), output], slab)
            }
            CpuKernel::Norm { norm, columns } => {
                let norm = weights.get(norm)?.norm()?;
                copy(slab, value(reads[0]), output.clone())?;
                self.normalise(slab, output, (columns, None), norm)
            }
            CpuKernel::NormSlices { norm, columns, width } => {
                let norm = weights.get(norm)?.norm()?;
                copy(slab, value(reads[0]), output.clone())?;
                self.normalise(slab, output, (columns, Some(width)), norm)
            }
            CpuKernel::Add { columns } => {
                copy(slab, value(reads[0]), output.clone())?;
                self.add(slab, [value(reads[1]), output], columns, None)
            }
            CpuKernel::AddNorm { norm, columns } => {
                let norm = weights.get(norm)?.norm()?;
                copy(slab, value(reads[0]), output.clone())?;
                self.add(slab, [value(reads[1]), output], columns, Some(norm))
            }
            CpuKernel::Linear { layer, activation }
            | CpuKernel::GatedLinear { layer, activation } => {
                let layer = weights.get(layer)?.linear()?;
                self.linear(layer, activation, [value(reads[0]), output], slab)
            }
            CpuKernel::Rotate { heads, rotary } => {
                copy(slab, value(reads[0]), output.clone())?;
                let rotation = Rotation::new(self.arch, heads, rotary);
                self.rotate(&rotation, [places.starts(), output], slab)
            }
            CpuKernel::Attention { heads, window, bias } => {
                let bias = match bias {
                    None => Bias::None,
                    Some(AttentionBias::Alibi) => Bias::Alibi,
                    Some(AttentionBias::Buckets(bias)) => {
                        Bias::Relative(weights.get(bias.table)?.relative_bias()?)
                    }
                };
                let attention = Attention { arch: self.arch, heads, window, bias };
                let operands = [value(reads[0]), places.starts(), output, places.scratch()];
                self.attention(&attention, operands, slab)
            }
            CpuKernel::Pool { poolings, columns } => {
                self.pool(poolings, columns, [value(reads[0]), places.starts(), output], slab)
            }
        }
    }

    fn fetch(&self, slab: &mut HostBlock, from: Place) -> Result<Vec<f32>, BackendError> {
        let source = view(slab, "fetch", from.bytes())?;
        Ok(source.to_vec())
    }

    fn collect(&self, fetched: Vec<f32>, into: &mut [f32]) -> Result<(), BackendError> {
        into.copy_from_slice(&fetched);
        Ok(())
    }
}

/// Nothing, where a value is changed in place.
fn copy(slab: &mut HostBlock, from: Range<usize>, to: Range<usize>) -> Result<(), BackendError> {
    if from != to {
        let [from, to] = views(slab, "copy", [from, to])?;
        to.copy_from_slice(from);
    }
    Ok(())
}
