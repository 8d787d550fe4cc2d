//! The operations as calls, until each backend has a lowering.

mod lower;
mod slab;

use vecmill_encoder::contract::Weight;
use vecmill_encoder::{
    AddNorm, Attention, Backend, BackendError, Buffer, Embed, EmbeddingTensors, Indices, Linear,
    NormTensors, Pool, Precision, RegionWriter, StackTensors, TensorView, model::DType,
};
use vecmill_memory::{HostBlock, HostSource};

use crate::attention::RelativeBias;
use crate::rows::{Norm, Tables};
use crate::simd::vectorised;
use crate::{CpuBackend, CpuLowering, attention, matmul, rows, tasks};
use slab::{Place, as_indices, views};

/// A loaded linear layer: packed weights and bias.
#[derive(Debug)]
pub struct PackedLinear(matmul::Panels);

#[derive(Debug)]
pub struct Embeddings(Tables, Norm);

fn norm(tensors: &NormTensors, into: &mut RegionWriter<HostBlock>) -> Result<Norm, BackendError> {
    let wrap = |tensor: &TensorView| Weight::Tensor(tensor.clone());
    Norm::new([&wrap(&tensors.gain), &wrap(&tensors.bias)], tensors.epsilon, into)
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
        matmul::Panels::pack(self.arch, (shape.inputs, shape.outputs), rows, bias, into)
            .map(PackedLinear)
    }

    fn load_norm(
        &self,
        tensors: &NormTensors,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Norm, BackendError> {
        norm(tensors, into)
    }

    fn load_embeddings(
        &self,
        tensors: &EmbeddingTensors,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Embeddings, BackendError> {
        {
            let wrap = |tensor: &TensorView| Weight::Tensor(tensor.clone());
            let (words, positions) = (wrap(&tensors.words), wrap(&tensors.positions));
            let types = tensors.types.as_ref().map(wrap);
            Ok(Embeddings(
                Tables::new([&words, &positions], types.as_ref(), into)?,
                norm(&tensors.norm, into)?,
            ))
        }
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
        self.by_rows(op.tables.0.columns(), output, |rows, output| {
            let (ids, positions) = (&ids[rows.clone()], &positions[rows]);
            vectorised(
                self.arch,
                #[inline(always)]
                || op.tables.0.write(ids, positions, Some(&op.tables.1), output),
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
                || rows::add(residual, Some(op.norm), output, columns),
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
