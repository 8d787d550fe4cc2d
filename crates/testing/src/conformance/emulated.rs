//! The suite on trial: a slow backend in plain Rust that rounds as half-precision devices do must
//! pass it, and one with a defect must not.
//!
//! Values lie in the slab as `f32`, rounded to the emulated format wherever a device would store
//! them: operands, weights, biases, what a linear layer passes to its activation or normalisation,
//! and the weights of attention. Narrow planes are `f32` as well, rounded to FP8.
//!
//! It fuses what a device may: sums are normalised at once; a linear layer with its residual leaves the
//! norm to its readers where rows have [`DEFERRED_COLUMNS`]; narrow layers have a plane of their own.

mod lower;
mod tests;

use half::{bf16, f16};
use vecmill_encoder::{
    AttentionBias, Backend, Graph, Node, Op, Place, Places, Step, ValueId, WeightId, Weights,
    alibi_slope,
};
use vecmill_encoder::{BackendError, RegionWriter, Stored, position_and_type};
use vecmill_memory::{HostBlock, HostSource};
use vecmill_model::{Activation, DType, Heads, Pooling, Poolings, Rotary, Weight, Window, e4m3};

use super::reference;
use lower::{Emulation, Kernel};

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

#[derive(Debug)]
struct Emulated {
    lowering: Emulation,
    defect: Defect,
}

/// Numbers, rounded.
type Values = Stored<HostBlock>;

/// An operation's weights, in the order in which it names them; missing ones are zeros.
#[derive(Debug)]
struct Loaded {
    tensors: Vec<Values>,
    epsilon: f32,
}

/// A slab, a step's places in it, and the weights: what a kernel works on.
struct Work<'a> {
    weights: &'a Weights<Loaded>,
    places: &'a Places<'a>,
    slab: &'a mut HostBlock,
}

impl Work<'_> {
    fn read(&self, value: ValueId, plane: usize) -> Vec<f32> {
        bytemuck::cast_slice(&self.slab.bytes()[self.places.plane(value, plane).bytes()]).to_vec()
    }

    fn indices(&self, bytes: std::ops::Range<usize>) -> Vec<u32> {
        bytemuck::cast_slice(&self.slab.bytes()[bytes]).to_vec()
    }

    fn ends(&self) -> Vec<(usize, usize)> {
        let starts = self.indices(self.places.starts());
        starts.windows(2).map(|pair| (pair[0] as usize, pair[1] as usize)).collect()
    }

    fn floats(&mut self, value: ValueId, plane: usize) -> &mut [f32] {
        let bytes = self.places.plane(value, plane).bytes();
        bytemuck::cast_slice_mut(&mut self.slab.bytes_mut()[bytes])
    }

    /// Rows that are deferred, normalised; other rows as they are. Beside those lie each row's mean
    /// and deviation.
    fn normalised(&self, value: ValueId, norm: Option<WeightId>) -> Result<Vec<f32>, BackendError> {
        let mut rows = self.read(value, 0);
        let Some(norm) = norm else { return Ok(rows) };
        let [gain, bias] = self.pair(norm)?;
        let moments = self.read(value, 1);
        for (row, moments) in rows.chunks_mut(gain.len()).zip(moments.chunks(2)) {
            for ((x, gain), bias) in row.iter_mut().zip(gain).zip(bias) {
                *x = (*x - moments[0] * gain) / moments[1] + bias;
            }
        }
        Ok(rows)
    }

    fn pair(&self, weight: WeightId) -> Result<[&[f32]; 2], BackendError> {
        let loaded = self.weights.get(weight)?;
        Ok([loaded.tensors[0].floats(), loaded.tensors[1].floats()])
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

    /// Writes a value in each of its planes.
    fn write(&self, work: &mut Work<'_>, to: ValueId, values: &[f32]) {
        let wide = work.floats(to, 0);
        wide.iter_mut().zip(values).for_each(|(to, &x)| *to = self.round(x));
        if work.places.planes(to) > 1 {
            let narrow = work.floats(to, 1);
            narrow.iter_mut().zip(values).for_each(|(to, &x)| *to = self.narrow(x));
        }
    }

    fn norm(&self, work: &Work<'_>, norm: WeightId, row: &[f32]) -> Result<Vec<f32>, BackendError> {
        let ([gain, bias], epsilon) = (work.pair(norm)?, work.weights.get(norm)?.epsilon);
        Ok(self.scaled(row, [gain, bias], epsilon))
    }

    fn scaled(&self, row: &[f32], [gain, bias]: [&[f32]; 2], epsilon: f32) -> Vec<f32> {
        let count = row.len() as f32;
        let mean = row.iter().sum::<f32>() / count;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
        let deviation = variance + epsilon;
        let deviation = if self.defect == Defect::NoRoot { deviation } else { deviation.sqrt() };
        let scaled = row.iter().zip(gain).zip(bias);
        scaled.map(|((x, gain), bias)| (x - mean) / deviation * gain + bias).collect()
    }

    fn norm_slices(
        &self,
        work: &Work<'_>,
        (norm, width): (WeightId, usize),
        mut rows: Vec<f32>,
        columns: usize,
    ) -> Result<Vec<f32>, BackendError> {
        let ([gain, bias], epsilon) = (work.pair(norm)?, work.weights.get(norm)?.epsilon);
        for row in rows.chunks_mut(columns) {
            let factors = gain.chunks(width).zip(bias.chunks(width));
            for ((gain, bias), slice) in factors.zip(row.chunks_mut(width)) {
                let normal = self.scaled(slice, [gain, bias], epsilon);
                slice.copy_from_slice(&normal);
            }
        }
        Ok(rows)
    }

    /// Rows, normalised if there is a norm.
    fn norms(
        &self,
        work: &Work<'_>,
        norm: Option<WeightId>,
        rows: Vec<f32>,
        columns: usize,
    ) -> Result<Vec<f32>, BackendError> {
        let Some(norm) = norm else { return Ok(rows) };
        let rows = rows.chunks(columns).map(|row| self.norm(work, norm, row));
        Ok(rows.collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn defer(
        &self,
        work: &mut Work<'_>,
        to: ValueId,
        sums: &[f32],
        norm: WeightId,
    ) -> Result<(), BackendError> {
        let (gain, epsilon) = (work.pair(norm)?[0].to_vec(), work.weights.get(norm)?.epsilon);
        let (mut rows, mut moments) = (Vec::new(), Vec::new());
        for row in sums.chunks(gain.len()) {
            let count = row.len() as f32;
            let mean = row.iter().sum::<f32>() / count;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
            let mean = if self.defect == Defect::NoDeferredMean { 0.0 } else { mean };
            moments.extend([mean, (variance + epsilon).sqrt()]);
            rows.extend(row.iter().zip(&gain).map(|(x, gain)| self.round(x * gain)));
        }
        work.floats(to, 0).copy_from_slice(&rows);
        work.floats(to, 1).copy_from_slice(&moments);
        Ok(())
    }

    fn embed(
        &self,
        work: &Work<'_>,
        tables: WeightId,
        columns: usize,
    ) -> Result<Vec<f32>, BackendError> {
        let (ids, positions) =
            (work.indices(work.places.ids()), work.indices(work.places.positions()));
        let tables = &work.weights.get(tables)?.tensors;
        let row = |table: &Values, index: u32| {
            table.floats()[index as usize * columns..][..columns].to_vec()
        };
        let rows = ids.iter().zip(&positions).flat_map(|(&id, &place)| {
            let (position, kind) = position_and_type(place);
            let (word, kinds) = (row(&tables[0], id), row(&tables[1], kind));
            let place = tables.get(2).map_or(vec![0.0; columns], |table| row(table, position));
            let terms = word.into_iter().zip(place).zip(kinds);
            terms.map(|((word, place), kind)| word + place + kind).collect::<Vec<_>>()
        });
        Ok(rows.collect())
    }

    /// What a layer makes of rows, stored.
    fn linear(
        &self,
        work: &Work<'_>,
        layer: WeightId,
        input: &[f32],
        activation: Activation,
    ) -> Result<Vec<f32>, BackendError> {
        let [weight, bias] = work.pair(layer)?;
        let inputs = weight.len() / bias.len();
        let rows = input.chunks(inputs).flat_map(|x| {
            weight.chunks(inputs).zip(bias).map(move |(w, &bias)| {
                let sum = x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
                let bias = if self.defect == Defect::NoBias { 0.0 } else { bias };
                activate(activation, self.round(sum + bias))
            })
        });
        Ok(rows.collect())
    }

    /// Of rows of gates and what they are for.
    fn gated(&self, rows: &[f32], columns: usize, activation: Activation) -> Vec<f32> {
        let rows = rows.chunks(2 * columns).flat_map(|row| {
            let (gates, ups) = row.split_at(columns);
            gates.iter().zip(ups).map(|(&g, u)| self.round(activate(activation, g)) * u)
        });
        rows.collect()
    }

    fn rotate(&self, work: &Work<'_>, qkv: ValueId, heads: Heads, rotary: Rotary) -> Vec<f32> {
        let mut rows = work.read(qkv, 0);
        for (start, end) in work.ends() {
            let frequencies = rotary.frequencies(end - start);
            for (row, head) in
                (start..end).flat_map(|row| (0..heads.queries + heads.keys).map(move |h| (row, h)))
            {
                let head = &mut rows[row * heads.columns() + head * heads.size..][..heads.size];
                for (pair, frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = ((row - start) as f32 * frequency).sin_cos();
                    let (x, y) = (head[pair], head[pair + frequencies.len()]);
                    head[pair] = x * cos - y * sin;
                    head[pair + frequencies.len()] = y * cos + x * sin;
                }
            }
        }
        rows
    }

    fn attention(
        &self,
        work: &mut Work<'_>,
        [qkv, to]: [ValueId; 2],
        (heads, window): (Heads, Window),
        bias: Option<AttentionBias>,
    ) -> Result<(), BackendError> {
        let (mut output, qkv) = (work.read(to, 0), work.read(qkv, 0));
        let size = heads.size;
        let table = bias.and_then(AttentionBias::buckets);
        let table =
            table.map(|bias| Ok((work.weights.get(bias.table)?, bias.reach))).transpose()?;
        let part = |row: usize, head: usize| &qkv[row * heads.columns() + head * size..][..size];
        for (start, end) in work.ends() {
            let last = if self.defect == Defect::OneKeyMore { end + 1 } else { end };
            for (query, head) in (start..end).flat_map(|q| (0..heads.queries).map(move |h| (q, h)))
            {
                let of_keys = heads.queries + head * heads.keys / heads.queries;
                let score = |key| {
                    let (q, k) = (part(query, head), part(key, of_keys));
                    let dot = q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
                    let bias = match (bias, table) {
                        (Some(AttentionBias::Alibi), _) => {
                            -alibi_slope(head, heads.queries) * query.abs_diff(key) as f32
                        }
                        (_, Some((table, reach))) => {
                            let table = table.tensors[0].floats();
                            let buckets = table.len() / heads.queries;
                            let bucket = reference::bucket(query, key, buckets, reach);
                            table[bucket * heads.queries + head]
                        }
                        _ => 0.0,
                    };
                    dot / (size as f32).sqrt() + bias
                };
                let place = query - start;
                let seen = window.seen(place..place + 1, last - start);
                let seen = start + seen.start..start + seen.end;
                let scores: Vec<f32> = seen.clone().map(score).collect();
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f32 = weights.iter().sum();
                let to = &mut output[query * heads.outputs() + head * size..][..size];
                for (column, to) in to.iter_mut().enumerate() {
                    let values = seen.clone().zip(&weights);
                    let value = |key| part(key, of_keys + heads.keys)[column];
                    let terms = values.map(|(key, &w)| self.round(w) * value(key));
                    *to = terms.sum::<f32>() / total;
                }
            }
        }
        self.write(work, to, &output);
        Ok(())
    }

    fn pool(&self, work: &Work<'_>, input: ValueId, poolings: Poolings) -> Vec<f32> {
        let columns = work.places.plane(input, 0).row_bytes / 4;
        let input = &work.read(input, 0);
        let rows = work.ends().into_iter().flat_map(|(start, end)| {
            let one_more = usize::from(self.defect == Defect::Mean);
            let places = poolings
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
        rows.collect()
    }
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
    type Weight = Loaded;
    type Fetched = Vec<f32>;

    fn lowering(&self) -> &Emulation {
        &self.lowering
    }

    fn source(&self) -> HostSource {
        HostSource
    }

    fn stream(&self) {}

    fn load(
        &self,
        graph: &Graph,
        node: &Node,
        weights: &[Weight],
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Loaded, BackendError> {
        let narrow = self.lowering.is_narrow(graph, node);
        let round = |index: usize, x: f32| match node.op {
            Op::Norm { .. } | Op::NormSlices { .. } => x,
            Op::Linear { .. } | Op::GatedLinear { .. } if narrow && index == 0 => self.narrow(x),
            _ => self.round(x),
        };
        let mut tensors = Vec::new();
        for (index, (weight, count)) in lower::stored(graph, node).into_iter().enumerate() {
            let numbers = weight.map(|weight| weights[weight.index()].to_f32());
            let numbers = numbers.unwrap_or_default();
            tensors.push(into.floats(count, |place| {
                place.iter_mut().zip(numbers.iter()).for_each(|(to, &x)| *to = round(index, x));
            })?);
        }
        let epsilon = match node.op {
            Op::Norm { epsilon, .. } | Op::NormSlices { epsilon, .. } => epsilon,
            _ => 0.0,
        };
        Ok(Loaded { tensors, epsilon })
    }

    fn copy_in(&self, slab: &mut HostBlock, values: &[u32], at: usize) -> Result<(), BackendError> {
        slab.bytes_mut()[at..at + size_of_val(values)]
            .copy_from_slice(bytemuck::cast_slice(values));
        Ok(())
    }

    fn run(
        &self,
        weights: &Weights<Loaded>,
        step: &Step<Kernel>,
        places: &Places<'_>,
        slab: &mut HostBlock,
    ) -> Result<(), BackendError> {
        let mut work = Work { weights, places, slab };
        let (work, reads, to) = (&mut work, &step.reads, step.writes[0]);
        let columns = places.plane(to, 0).row_bytes / 4;
        let sum = |x: Vec<f32>, y: Vec<f32>| x.iter().zip(y).map(|(x, y)| x + y).collect();
        let rows = match step.kernel {
            Kernel::Embed { tables, norm } => {
                let sums = self.embed(work, tables, columns)?;
                self.norms(work, norm, sums, columns)?
            }
            Kernel::Norm { norm } => {
                self.norms(work, Some(norm), work.read(reads[0], 0), columns)?
            }
            Kernel::NormSlices { norm, width } => {
                self.norm_slices(work, (norm, width), work.read(reads[0], 0), columns)?
            }
            Kernel::Add { norm } => {
                let sums = sum(work.read(reads[0], 0), work.read(reads[1], 0));
                self.norms(work, norm, sums, columns)?
            }
            Kernel::Linear { layer, activation, gated, input_norm, narrow } => {
                let input = if narrow {
                    work.read(reads[0], 1)
                } else {
                    work.normalised(reads[0], input_norm)?
                };
                if gated {
                    let halves = self.linear(work, layer, &input, Activation::Identity)?;
                    self.gated(&halves, columns, activation)
                } else {
                    self.linear(work, layer, &input, activation)?
                }
            }
            Kernel::LinearDefer { layer, norm, residual_norm, narrow } => {
                let input = work.read(reads[0], usize::from(narrow));
                let projected = self.linear(work, layer, &input, Activation::Identity)?;
                let residual = work.normalised(reads[1], residual_norm)?;
                let sums: Vec<f32> = sum(projected, residual);
                return self.defer(work, to, &sums, norm);
            }
            Kernel::Normalize { norm } => work.normalised(reads[0], Some(norm))?,
            Kernel::Rotate { heads, rotary } => self.rotate(work, reads[0], heads, rotary),
            Kernel::Attention { heads, window, bias } => {
                return self.attention(work, [reads[0], to], (heads, window), bias);
            }
            Kernel::Pool(poolings) => self.pool(work, reads[0], poolings),
        };
        self.write(work, to, &rows);
        Ok(())
    }

    fn fetch(&self, slab: &mut HostBlock, from: Place) -> Result<Vec<f32>, BackendError> {
        Ok(bytemuck::cast_slice(&slab.bytes()[from.bytes()]).to_vec())
    }

    fn collect(&self, fetched: Vec<f32>, into: &mut [f32]) -> Result<(), BackendError> {
        into.copy_from_slice(&fetched);
        Ok(())
    }
}
