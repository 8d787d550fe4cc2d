//! A slab on which one operation is tried.
//!
//! A backend's activations can't be written from outside, so operands are made by its own `embed`
//! and read back: the reference then works on exactly the numbers that the operation saw. `linear` has
//! the linear layers, `deferred` those around normalisations that are deferred.

mod deferred;
mod linear;

use vecmill_memory::{Lease, Pool};

use super::reference::{self, Bounded, Matrix};
use super::{Backend, Failure};
use crate::backend::{
    self, AddNorm, Attention, BackendError, Buffer, Copies, Embed, EmbeddingTensors, Indices,
    Lower, NormTensors, RegionWriter, Sequences, Slab, StackTensors, Weight, WeightPlan, Workspace,
    load_weights,
};
use crate::program::Projection;
use vecmill_model::{Poolings, TensorView, e4m3};

const EPSILON: f32 = 1e-5;
const SLAB_BYTES: usize = 64 << 20;
/// For the weights of a stage, each in a region of its own.
const WEIGHT_BYTES: usize = 64 << 20;

/// Rows behind the last sequence, all NaN.
const STRAY_ROWS: usize = 9;

pub(super) struct Stage<'b, B: Backend> {
    backend: &'b B,
    pool: &'b Pool<B::Source>,
    lease: Lease<'b, B::Source>,
    used: usize,
    random: Random,
}

/// Numbers that every number format in use holds exactly: FP8's from -2 to 2.
struct Random(u64);

impl Random {
    fn number(&mut self) -> f32 {
        // A linear congruential generator with Knuth's constants.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let step = i16::try_from(self.0 >> 57).unwrap_or(0) - 64;
        e4m3::to_f32(e4m3::from_f32(f32::from(step) / 32.0))
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    fn tensor(&mut self, shape: &[usize]) -> Result<TensorView, Failure> {
        tensor(shape, self.numbers(shape.iter().product()))
    }
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Result<TensorView, Failure> {
    TensorView::from_f32("random", shape, values)
        .map_err(|error| Failure::Fixture(error.to_string()))
}

fn rows(tensor: &TensorView) -> Matrix {
    let columns = tensor.shape().last().copied().unwrap_or(1).max(1);
    let row = |row: &[f32]| row.iter().map(|&value| f64::from(value)).collect();
    tensor.to_f32().chunks(columns).map(row).collect()
}

fn row(tensor: &TensorView) -> Vec<f64> {
    rows(tensor).into_iter().flatten().collect()
}

fn reference_norm(tensors: &NormTensors) -> reference::Norm {
    let epsilon = f64::from(tensors.epsilon);
    reference::Norm { gain: row(&tensors.gain), bias: row(&tensors.bias), epsilon }
}

impl<'b, B: Backend> Stage<'b, B> {
    /// The pool that a stage's memory is of.
    pub(super) fn pool(backend: &B) -> Pool<B::Source> {
        Pool::new(backend.source(), SLAB_BYTES + WEIGHT_BYTES)
    }

    pub(super) fn new(backend: &'b B, pool: &'b Pool<B::Source>) -> Result<Self, Failure> {
        let lease = pool.lease(SLAB_BYTES, &backend.stream());
        let lease = lease.map_err(|error| Failure::Fixture(error.to_string()))?;
        Ok(Self { backend, pool, lease, used: 0, random: Random(7) })
    }

    /// Loads something, into a region that is planned for it alone.
    fn load<T>(
        &self,
        weight: Weight<'_>,
        load: impl FnOnce(&B, &mut RegionWriter<Slab<B>>) -> Result<T, BackendError>,
    ) -> Result<T, Failure> {
        let mut plan = WeightPlan::default();
        self.backend.lowering().store(weight, &mut plan);
        load_weights(self.pool, &plan, |into| Ok(load(self.backend, into)?))
    }

    fn linear(&self, stack: StackTensors<'_>) -> Result<Projection<B>, Failure> {
        let load = |backend: &B, into: &mut _| backend.load_linear(stack, into);
        Ok(Projection { shape: stack.shape(), weights: self.load(Weight::Linear(stack), load)? })
    }

    fn norm(&self, tensors: &NormTensors) -> Result<B::Norm, Failure> {
        self.load(Weight::Norm(tensors), |backend, into| backend.load_norm(tensors, into))
    }

    fn lower(&self) -> &'b B::Lower {
        self.backend.lowering()
    }

    pub(super) fn check_embed(mut self, count: usize, columns: usize) -> Result<(), Failure> {
        let words = self.random.tensor(&[count, columns])?;
        let (buffer, expected) = self.embedded(words)?;
        self.compare(&format!("embed {count}×{columns}"), buffer, expected)
    }

    pub(super) fn check_add_norm(
        mut self,
        count: usize,
        columns: usize,
        in_place: bool,
    ) -> Result<(), Failure> {
        let (input, x) = self.random(count, columns)?;
        let (residual, y) = self.random(count, columns)?;
        let tensors = self.norm_tensors(columns)?;
        let norm = self.norm(&tensors)?;
        let copies = Copies::Both;
        let output = if in_place { input } else { self.buffer_of(count, columns, copies) };
        let op = AddNorm { input, residual, norm: &norm, output };
        self.backend.add_norm(self.lease.block_mut(), &op)?;
        let expected = x.iter().zip(&y).flat_map(|(x, y)| {
            let terms = x.iter().zip(y).map(|(&x, &y)| [x, y].map(Bounded::exact));
            self.normalised(terms, &tensors)
        });
        let case = format!("add and normalise {count}×{columns} in_place={in_place}");
        let expected = expected.collect();
        self.compare(&case, output, expected)
    }

    pub(super) fn check_attention(
        mut self,
        lengths: &[usize],
        heads: usize,
        head_size: usize,
        biased: bool,
    ) -> Result<(), Failure> {
        const BUCKETS: usize = 32;
        const REACH: usize = 128;
        let (hidden, tokens) = (heads * head_size, lengths.iter().sum::<usize>() + STRAY_ROWS);
        let (qkv, rows_in) = self.random_with_stray(tokens, 3 * hidden)?;
        let sequences = self.sequences(lengths)?;
        let table = self.random.tensor(&[BUCKETS, heads])?;
        let weight = Weight::RelativeBias { table: &table, max_distance: REACH };
        let bias = biased.then(|| {
            self.load(weight, |backend, into| backend.load_relative_bias(&table, REACH, into))
        });
        let bias = bias.transpose()?;
        let output = self.buffer(tokens, hidden);
        let longest = sequences.longest;
        let workspace =
            self.workspace(self.lower().attention_workspace(tokens, longest, head_size));
        let op = Attention { qkv, sequences, heads, bias: bias.as_ref(), output, workspace };
        self.backend.attention(self.lease.block_mut(), &op)?;
        let table = biased.then(|| (rows(&table), REACH));
        let precision = self.backend.precision();
        let reference = reference::Heads { heads, head_size, table, precision };
        let mut expected = Vec::new();
        let mut first = 0;
        for &length in lengths {
            expected.extend(reference.sequence(&rows_in[first..first + length]));
            first += length;
        }
        let case = format!("attention {lengths:?} {heads}×{head_size} biased={biased}");
        self.compare(&case, output, expected)
    }

    pub(super) fn check_pool(
        mut self,
        lengths: &[usize],
        columns: usize,
        pooling: Poolings,
    ) -> Result<(), Failure> {
        let tokens = lengths.iter().sum::<usize>() + STRAY_ROWS;
        let (input, x) = self.random_with_stray(tokens, columns)?;
        let sequences = self.sequences(lengths)?;
        let output = self.buffer(lengths.len(), pooling.count() * columns);
        self.backend
            .pool(self.lease.block_mut(), &backend::Pool { input, sequences, pooling, output })?;
        let precision = self.backend.precision();
        let mut expected = Vec::new();
        let mut first = 0;
        for &length in lengths {
            for (pooling, column) in
                pooling.iter().flat_map(|pooling| (0..columns).map(move |column| (pooling, column)))
            {
                let numbers: Vec<f64> =
                    x[first..first + length].iter().map(|row| row[column]).collect();
                expected.push(reference::pool(&numbers, pooling, precision));
            }
            first += length;
        }
        self.compare(&format!("pool {pooling} of {columns} columns"), output, expected)
    }

    /// A matrix of random numbers in the slab, and the numbers.
    fn random(&mut self, count: usize, columns: usize) -> Result<(Buffer, Matrix), Failure> {
        let words = self.random.tensor(&[count, columns])?;
        self.embedded_rows(words)
    }

    /// As [`random`](Self::random), with stray rows at the end.
    fn random_with_stray(
        &mut self,
        count: usize,
        columns: usize,
    ) -> Result<(Buffer, Matrix), Failure> {
        let mut words = self.random.numbers(count * columns);
        words[..STRAY_ROWS * columns].fill(f32::NAN); // ids run backwards
        let words = tensor(&[count, columns], words)?;
        self.embedded_rows(words)
    }

    fn embedded_rows(&mut self, words: TensorView) -> Result<(Buffer, Matrix), Failure> {
        let (buffer, _) = self.embedded(words)?;
        let values = self.read(buffer)?;
        Ok((buffer, values.chunks(buffer.columns).map(<[f64]>::to_vec).collect()))
    }

    /// Embeds a token for each of `words`, from the last to the first; what comes out and what
    /// should.
    fn embedded(&mut self, words: TensorView) -> Result<(Buffer, Vec<Bounded>), Failure> {
        const POSITIONS: usize = 9;
        let &[count, columns] = words.shape() else {
            return Err(Failure::Fixture("words are a matrix".into()));
        };
        let tensors = EmbeddingTensors {
            words,
            positions: self.random.tensor(&[POSITIONS, columns])?,
            types: Some(self.random.tensor(&[2, columns])?),
            norm: self.norm_tensors(columns)?,
        };
        let weight = Weight::Embeddings(&tensors);
        let tables = self.load(weight, |backend, into| backend.load_embeddings(&tensors, into))?;
        let last = u32::try_from(count).unwrap_or(1) - 1;
        let ids: Vec<u32> = (0..=last).rev().collect();
        let positions: Vec<u32> = ids.iter().map(|id| id % 9).collect();
        let output = self.buffer_of(count, columns, Copies::Both);
        let op = Embed {
            ids: self.indices(&ids)?,
            positions: self.indices(&positions)?,
            tables: &tables,
            output,
        };
        self.backend.embed(self.lease.block_mut(), &op)?;
        let (words, places) = (rows(&tensors.words), rows(&tensors.positions));
        let kinds = tensors.types.as_ref().map(rows).unwrap_or_default();
        let expected = ids.iter().zip(&positions).flat_map(|(&id, &position)| {
            let terms = words[id as usize].iter().zip(&places[position as usize]);
            let terms = terms.zip(&kinds[0]);
            let terms =
                terms.map(|((&word, &place), &kind)| [word, place, kind].map(Bounded::exact));
            self.normalised(terms, &tensors.norm)
        });
        let expected = expected.collect();
        Ok((output, expected))
    }

    /// A row of sums, normalised.
    fn normalised<const N: usize>(
        &self,
        row_terms: impl Iterator<Item = [Bounded; N]>,
        tensors: &NormTensors,
    ) -> Vec<Bounded> {
        let precision = self.backend.precision();
        let sums: Vec<Bounded> = row_terms.map(|terms| reference::sum(&terms, precision)).collect();
        reference_norm(tensors).apply(&sums, precision)
    }

    fn norm_tensors(&mut self, columns: usize) -> Result<NormTensors, Failure> {
        let gain = self.random.tensor(&[columns])?;
        Ok(NormTensors { gain, bias: self.random.tensor(&[columns])?, epsilon: EPSILON })
    }

    fn sequences(&mut self, lengths: &[usize]) -> Result<Sequences, Failure> {
        let mut starts = vec![0];
        for &length in lengths {
            let last = starts.last().copied().unwrap_or(0);
            starts.push(last + u32::try_from(length).unwrap_or(0));
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Ok(Sequences { starts: self.indices(&starts)?, longest })
    }

    fn indices(&mut self, values: &[u32]) -> Result<Indices, BackendError> {
        let indices = Indices { offset: self.take(size_of_val(values)), length: values.len() };
        self.backend.copy_in(self.lease.block_mut(), values, indices)?;
        Ok(indices)
    }

    fn buffer(&mut self, rows: usize, columns: usize) -> Buffer {
        self.buffer_of(rows, columns, Copies::Wide)
    }

    fn buffer_of(&mut self, rows: usize, columns: usize, copies: Copies) -> Buffer {
        let buffer = Buffer { offset: 0, rows, columns, copies };
        Buffer { offset: self.take(self.lower().end_of(buffer)), ..buffer }
    }

    /// With the copies that normalised rows have in a forward pass.
    fn normalised_buffer(&mut self, rows: usize, columns: usize) -> Buffer {
        let narrow = self.backend.precision().narrow.is_some();
        self.buffer_of(rows, columns, if narrow { Copies::Both } else { Copies::Wide })
    }

    fn workspace(&mut self, bytes: usize) -> Workspace {
        Workspace { offset: self.take(bytes), bytes }
    }

    fn take(&mut self, bytes: usize) -> usize {
        let offset = self.used;
        self.used += bytes.next_multiple_of(vecmill_memory::ALIGNMENT);
        offset
    }

    fn read(&mut self, buffer: Buffer) -> Result<Vec<f64>, Failure> {
        let mut values = vec![0.0_f32; buffer.elements()];
        let fetched = self.backend.fetch(self.lease.block_mut(), buffer)?;
        self.backend.collect(fetched, &mut values)?;
        Ok(values.into_iter().map(f64::from).collect())
    }

    fn compare(
        &mut self,
        case: &str,
        output: Buffer,
        expected: Vec<Bounded>,
    ) -> Result<(), Failure> {
        let found = self.read(output)?;
        for (index, (&found, Bounded { value, tolerance })) in
            found.iter().zip(expected).enumerate()
        {
            let off = (found - value).abs();
            if off > tolerance || off.is_nan() {
                let case = case.to_owned();
                return Err(Failure::Value { case, index, found, expected: value, tolerance });
            }
        }
        Ok(())
    }
}
