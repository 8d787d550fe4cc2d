//! The suite on trial: a slow backend in plain Rust that rounds as half-precision devices do must
//! pass it, and one with a defect must not.
//!
//! Values lie in the slab as `f32`, rounded to the emulated format wherever a device would store
//! them: operands, weights, biases, what a linear layer passes to its activation or normalisation,
//! and the weights of attention. Narrow copies are `f32` as well, rounded to FP8.

mod tests;

use half::{bf16, f16};
use vecmill_memory::{HostBlock, HostSource};

use super::reference;
use crate::backend::{
    AddNorm, Attention, Backend, BackendError, Buffer, Copies, Embed, EmbeddingTensors, Indices,
    Linear, LinearAddNorm, LinearShape, Lower, NormTensors, Normalize, Pool, Precision,
    RegionWriter, Sequences, StackTensors, Stored, Weight, WeightPlan,
};
use vecmill_model::{Activation, DType, Pooling, TensorView, e4m3};

/// What an emulated backend does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// It stores one bit less than it says.
    Coarse,
    /// It leaves a linear layer's bias out.
    NoBias,
    /// It lets each sequence see the first row behind it.
    OneKeyMore,
    /// It takes the variance for the deviation.
    NoRoot,
    /// It divides means by one too many.
    Mean,
    /// It forgets the mean of rows whose normalisation it deferred.
    NoDeferredMean,
}

/// Columns of rows whose normalisation is deferred.
const DEFERRED_COLUMNS: usize = 32;

/// The sizes of one that computes in a format.
#[derive(Debug, Clone, Copy)]
struct Emulation(DType);

#[derive(Debug)]
struct Emulated {
    lowering: Emulation,
    defect: Defect,
}

/// Numbers, rounded.
type Values = Stored<HostBlock>;
type Writer = RegionWriter<HostBlock>;

#[derive(Debug)]
struct Layer {
    weight: Values,
    bias: Values,
    inputs: usize,
    narrow: bool,
    input_norm: Option<Norm>,
}

#[derive(Debug)]
struct Norm {
    gain: Values,
    bias: Values,
    epsilon: f32,
}

#[derive(Debug)]
struct Embeddings {
    words: Values,
    positions: Values,
    kinds: Values,
    norm: Norm,
}

#[derive(Debug)]
struct RelativeBias {
    table: Values,
    heads: usize,
    reach: usize,
}

impl Emulation {
    fn keep<'t>(tensors: impl IntoIterator<Item = &'t TensorView>, plan: &mut WeightPlan) {
        let bytes = tensors.into_iter().map(|tensor| tensor.elements() * size_of::<f32>());
        plan.place(bytes.sum());
    }
}

impl Lower for Emulation {
    fn store(&self, weight: Weight<'_>, plan: &mut WeightPlan) {
        match weight {
            Weight::Linear(StackTensors { parts, input_norm, .. }) => {
                Self::keep(parts.iter().map(|part| &part.weight), plan);
                Self::keep(parts.iter().filter_map(|part| part.bias.as_ref()), plan);
                if let Some(norm) = input_norm {
                    self.store(Weight::Norm(norm), plan);
                }
            }
            Weight::Norm(norm) => {
                Self::keep([&norm.gain], plan);
                Self::keep([&norm.bias], plan);
            }
            Weight::Embeddings(EmbeddingTensors { words, positions, types, norm }) => {
                Self::keep([words], plan);
                Self::keep([positions], plan);
                Self::keep([types.as_ref().unwrap_or(&norm.gain)], plan);
                self.store(Weight::Norm(norm), plan);
            }
            Weight::RelativeBias { table, .. } => Self::keep([table], plan),
        }
    }

    fn element_bytes(&self) -> usize {
        4
    }

    fn is_narrow(&self, layer: LinearShape) -> bool {
        self.0 == DType::F8E4M3 && !layer.wide && layer.suits_e4m3()
    }

    fn defers_norm(&self, _rows: usize, columns: usize) -> bool {
        self.0 != DType::F8E4M3 && columns == DEFERRED_COLUMNS
    }

    fn deferred_bytes(&self) -> usize {
        8
    }
}

impl Emulated {
    fn new(format: DType, defect: Defect) -> Self {
        Self { lowering: Emulation(format), defect }
    }

    fn round(&self, value: f32) -> f32 {
        let coarse = |bits: u16| if self.defect == Defect::Coarse { bits & !3 } else { bits };
        match self.lowering.0 {
            DType::F32 => value,
            DType::F16 | DType::F8E4M3 => {
                f16::from_bits(coarse(f16::from_f32(value).to_bits())).to_f32()
            }
            DType::BF16 => bf16::from_bits(coarse(bf16::from_f32(value).to_bits())).to_f32(),
        }
    }

    /// `value` as an operand, which is scaled.
    fn narrow(&self, value: f32) -> f32 {
        let bits = e4m3::from_f32(4.0 * value);
        e4m3::to_f32(if self.defect == Defect::Coarse { bits & !1 } else { bits }) / 4.0
    }

    fn rounded(&self, tensor: &TensorView, into: &mut Writer) -> Result<Values, BackendError> {
        let values = tensor.to_f32();
        let rounded: Vec<f32> = values.iter().map(|&value| self.round(value)).collect();
        keep(&rounded, into)
    }

    fn layer(&self, stack: StackTensors<'_>, into: &mut Writer) -> Result<Layer, BackendError> {
        let (shape, narrow) = (stack.shape(), self.lowering.is_narrow(stack.shape()));
        let round = |&value: &f32| if narrow { self.narrow(value) } else { self.round(value) };
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for part in stack.parts {
            weight.extend(part.weight.to_f32().iter().map(round));
            let numbers = part.bias.as_ref().map(TensorView::to_f32).unwrap_or_default();
            bias.extend(numbers.iter().map(|&value| self.round(value)));
        }
        Ok(Layer {
            weight: keep(&weight, into)?,
            bias: keep(&bias, into)?,
            inputs: shape.inputs,
            narrow,
            input_norm: stack.input_norm.map(|norm| self.load_norm(norm, into)).transpose()?,
        })
    }

    fn write(&self, slab: &mut HostBlock, to: Buffer, values: impl IntoIterator<Item = f32>) {
        let floats: &mut [f32] = bytemuck::cast_slice_mut(slab.bytes_mut());
        let (wide, narrow) = (to.offset / 4, to.narrow_offset(4) / 4);
        for (index, value) in values.into_iter().enumerate().take(to.elements()) {
            if to.copies != Copies::Narrow {
                floats[wide + index] = self.round(value);
            }
            if to.copies != Copies::Wide {
                floats[narrow + index] = self.narrow(value);
            }
        }
    }

    fn norm(&self, norm: &Norm, row: &[f32]) -> Vec<f32> {
        let count = row.len() as f32;
        let mean = row.iter().sum::<f32>() / count;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
        let deviation = variance + norm.epsilon;
        let deviation = if self.defect == Defect::NoRoot { deviation } else { deviation.sqrt() };
        let scaled = row.iter().zip(norm.gain.floats()).zip(norm.bias.floats());
        scaled.map(|((x, gain), bias)| (x - mean) / deviation * gain + bias).collect()
    }

    /// Rows that are deferred, normalised; other rows as they are. Beside those lie each row's mean and
    /// deviation.
    fn normalised(&self, slab: &mut HostBlock, from: Buffer, norm: Option<&Norm>) -> Vec<f32> {
        let mut rows = read(slab, from);
        let (Copies::Deferred, Some(norm)) = (from.copies, norm) else { return rows };
        let beside = Buffer { offset: from.narrow_offset(4), columns: 2, ..from };
        let moments = read(slab, beside);
        for (row, moments) in rows.chunks_mut(from.columns).zip(moments.chunks(2)) {
            for ((x, gain), bias) in row.iter_mut().zip(norm.gain.floats()).zip(norm.bias.floats())
            {
                *x = (*x - moments[0] * gain) / moments[1] + bias;
            }
        }
        rows
    }

    fn defer(&self, slab: &mut HostBlock, to: Buffer, sums: &[f32], norm: &Norm) {
        let (mut rows, mut moments) = (Vec::new(), Vec::new());
        for row in sums.chunks(to.columns) {
            let count = row.len() as f32;
            let mean = row.iter().sum::<f32>() / count;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
            let mean = if self.defect == Defect::NoDeferredMean { 0.0 } else { mean };
            moments.extend([mean, (variance + norm.epsilon).sqrt()]);
            rows.extend(row.iter().zip(norm.gain.floats()).map(|(x, gain)| x * gain));
        }
        self.write(slab, Buffer { copies: Copies::Wide, ..to }, rows);
        let floats: &mut [f32] = bytemuck::cast_slice_mut(slab.bytes_mut());
        floats[to.narrow_offset(4) / 4..][..moments.len()].copy_from_slice(&moments);
    }

    fn ends(&self, slab: &mut HostBlock, sequences: Sequences) -> Vec<(usize, usize)> {
        let starts = indices(slab, sequences.starts);
        starts.windows(2).map(|pair| (pair[0] as usize, pair[1] as usize)).collect()
    }
}

fn keep(values: &[f32], into: &mut Writer) -> Result<Values, BackendError> {
    into.floats(values.len(), |place| place.copy_from_slice(values))
}

fn read(slab: &mut HostBlock, from: Buffer) -> Vec<f32> {
    let floats: &[f32] = bytemuck::cast_slice(slab.bytes_mut());
    floats[from.offset / 4..][..from.elements()].to_vec()
}

fn indices(slab: &mut HostBlock, from: Indices) -> Vec<u32> {
    let all: &[u32] = bytemuck::cast_slice(slab.bytes_mut());
    all[from.offset / 4..][..from.length].to_vec()
}

fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Gelu => reference::activate(activation, f64::from(x)) as f32, // std has no erf
        Activation::GeluTanh => {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::Identity => x,
    }
}

impl Backend for Emulated {
    type Lower = Emulation;
    type Source = HostSource;
    type Linear = Layer;
    type Norm = Norm;
    type Embeddings = Embeddings;
    type RelativeBias = RelativeBias;
    type Fetched = Vec<f32>;

    fn source(&self) -> HostSource {
        HostSource
    }

    fn stream(&self) {}

    fn lowering(&self) -> &Emulation {
        &self.lowering
    }

    fn precision(&self) -> Precision {
        Precision::of(self.lowering.0)
    }

    fn load_linear(
        &self,
        stack: StackTensors<'_>,
        into: &mut Writer,
    ) -> Result<Layer, BackendError> {
        self.layer(stack, into)
    }

    fn load_norm(&self, tensors: &NormTensors, into: &mut Writer) -> Result<Norm, BackendError> {
        let gain = keep(&tensors.gain.to_f32(), into)?;
        let bias = keep(&tensors.bias.to_f32(), into)?;
        Ok(Norm { gain, bias, epsilon: tensors.epsilon })
    }

    fn load_embeddings(
        &self,
        tensors: &EmbeddingTensors,
        into: &mut Writer,
    ) -> Result<Embeddings, BackendError> {
        Ok(Embeddings {
            words: self.rounded(&tensors.words, into)?,
            positions: self.rounded(&tensors.positions, into)?,
            kinds: match &tensors.types {
                Some(types) => self.rounded(types, into)?,
                None => keep(&vec![0.0; tensors.norm.gain.elements()], into)?,
            },
            norm: self.load_norm(&tensors.norm, into)?,
        })
    }

    fn load_relative_bias(
        &self,
        table: &TensorView,
        reach: usize,
        into: &mut Writer,
    ) -> Result<RelativeBias, BackendError> {
        let heads = table.shape()[1];
        Ok(RelativeBias { table: self.rounded(table, into)?, heads, reach })
    }

    fn copy_in(
        &self,
        slab: &mut HostBlock,
        values: &[u32],
        into: Indices,
    ) -> Result<(), BackendError> {
        let all: &mut [u32] = bytemuck::cast_slice_mut(slab.bytes_mut());
        all[into.offset / 4..][..into.length].copy_from_slice(values);
        Ok(())
    }

    fn embed(&self, slab: &mut HostBlock, op: &Embed<'_, Self>) -> Result<(), BackendError> {
        let (ids, positions) = (indices(slab, op.ids), indices(slab, op.positions));
        let (tables, columns) = (op.tables, op.output.columns);
        let row = |table: &[f32], index: u32| table[index as usize * columns..][..columns].to_vec();
        let rows = ids.iter().zip(&positions).flat_map(|(&id, &position)| {
            let word = row(tables.words.floats(), id);
            let place = row(tables.positions.floats(), position);
            let terms = word.iter().zip(&place).zip(tables.kinds.floats());
            let sums: Vec<f32> = terms.map(|((word, place), kind)| word + place + kind).collect();
            self.norm(&tables.norm, &sums)
        });
        self.write(slab, op.output, rows);
        Ok(())
    }

    fn linear(&self, slab: &mut HostBlock, op: &Linear<'_, Self>) -> Result<(), BackendError> {
        let Layer { weight, bias, inputs, narrow, input_norm } = op.weights;
        let offset = if *narrow { op.input.narrow_offset(4) } else { op.input.offset };
        let input = self.normalised(slab, Buffer { offset, ..op.input }, input_norm.as_ref());
        let rows = input.chunks(*inputs).flat_map(|x| {
            weight.floats().chunks(*inputs).zip(bias.floats()).map(move |(w, bias)| {
                let sum = x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
                let bias = if self.defect == Defect::NoBias { 0.0 } else { *bias };
                activate(op.activation, self.round(sum + bias))
            })
        });
        self.write(slab, op.output, rows);
        Ok(())
    }

    fn attention(
        &self,
        slab: &mut HostBlock,
        op: &Attention<'_, Self>,
    ) -> Result<(), BackendError> {
        let qkv = read(slab, op.qkv);
        let hidden = op.output.columns;
        let size = hidden / op.heads;
        let part = |row: usize, part: usize, head: usize| {
            &qkv[row * op.qkv.columns + part * hidden + head * size..][..size]
        };
        let mut output = read(slab, op.output);
        for (start, end) in self.ends(slab, op.sequences) {
            let last = if self.defect == Defect::OneKeyMore { end + 1 } else { end };
            for (query, head) in (start..end).flat_map(|q| (0..op.heads).map(move |h| (q, h))) {
                let score = |key| {
                    let (q, k) = (part(query, 0, head), part(key, 1, head));
                    let dot = q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
                    let bias = op.bias.map_or(0.0, |RelativeBias { table, heads, reach }| {
                        let table = table.floats();
                        let buckets = table.len() / heads;
                        table[reference::bucket(query, key, buckets, *reach) * heads + head]
                    });
                    dot / (size as f32).sqrt() + bias
                };
                let scores: Vec<f32> = (start..last).map(score).collect();
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f32 = weights.iter().sum();
                let to = &mut output[query * hidden + head * size..][..size];
                for (column, to) in to.iter_mut().enumerate() {
                    let values = (start..last).zip(&weights);
                    let terms = values.map(|(key, &w)| self.round(w) * part(key, 2, head)[column]);
                    *to = terms.sum::<f32>() / total;
                }
            }
        }
        self.write(slab, op.output, output);
        Ok(())
    }

    fn add_norm(&self, slab: &mut HostBlock, op: &AddNorm<'_, Self>) -> Result<(), BackendError> {
        let (input, residual) = (read(slab, op.input), read(slab, op.residual));
        let sums: Vec<f32> = input.iter().zip(residual).map(|(x, y)| x + y).collect();
        let rows = sums.chunks(op.output.columns).flat_map(|row| self.norm(op.norm, row));
        self.write(slab, op.output, rows);
        Ok(())
    }

    fn linear_add_norm(
        &self,
        slab: &mut HostBlock,
        op: &LinearAddNorm<'_, Self>,
    ) -> Result<(), BackendError> {
        if op.output.copies != Copies::Deferred {
            return op.in_two(self, slab);
        }
        let &LinearAddNorm { input, weights, residual, residual_norm, norm, output, workspace } =
            op;
        let residual = self.normalised(slab, residual, residual_norm);
        let (activation, product) =
            (Activation::Identity, Buffer { copies: Copies::Wide, ..output });
        self.linear(slab, &Linear { input, weights, activation, output: product, workspace })?;
        let product = read(slab, product);
        let sums: Vec<f32> = product.iter().zip(residual).map(|(x, y)| x + y).collect();
        self.defer(slab, output, &sums, norm);
        Ok(())
    }

    fn normalize(
        &self,
        slab: &mut HostBlock,
        op: &Normalize<'_, Self>,
    ) -> Result<(), BackendError> {
        let rows = self.normalised(slab, op.input, Some(op.norm));
        self.write(slab, op.output, rows);
        Ok(())
    }

    fn pool(&self, slab: &mut HostBlock, op: &Pool) -> Result<(), BackendError> {
        let (input, columns) = (read(slab, op.input), op.input.columns);
        let rows = self.ends(slab, op.sequences).into_iter().flat_map(|(start, end)| {
            let input = &input;
            let one_more = usize::from(self.defect == Defect::Mean);
            let places = op
                .pooling
                .iter()
                .flat_map(move |pooling| (0..columns).map(move |column| (pooling, column)));
            places.map(move |(pooling, column)| {
                let mut all = (start..end).map(|row| input[row * columns + column]);
                let count = (end - start + one_more).max(1) as f32;
                let value = match pooling {
                    Pooling::Cls => all.next(),
                    Pooling::LastToken => all.next_back(),
                    Pooling::Max => all.reduce(f32::max),
                    Pooling::Mean => Some(all.sum::<f32>() / count),
                    Pooling::MeanSqrtLen => Some(all.sum::<f32>() / count.sqrt()),
                    Pooling::WeightedMean => {
                        let weighted = all.zip(1u16..).map(|(x, weight)| x * f32::from(weight));
                        Some(weighted.sum::<f32>() / (count * (count + 1.0) / 2.0))
                    }
                };
                value.unwrap_or(0.0)
            })
        });
        self.write(slab, op.output, rows.collect::<Vec<_>>());
        Ok(())
    }

    fn fetch(&self, slab: &mut HostBlock, from: Buffer) -> Result<Vec<f32>, BackendError> {
        Ok(read(slab, from))
    }

    fn collect(&self, fetched: Vec<f32>, into: &mut [f32]) -> Result<(), BackendError> {
        into.copy_from_slice(&fetched);
        Ok(())
    }
}
