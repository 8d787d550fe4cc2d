//! Operations that go row by row: embedding, layer normalisation, pooling.

use vecmill_encoder::{BackendError, RegionWriter, Stored, position_and_type};
use vecmill_memory::HostBlock;
use vecmill_model::{Pooling, Poolings, TensorView, Weight};

use crate::math::sum;

/// Gain, bias and epsilon of a layer normalisation (Ba et al., arXiv:1607.06450).
#[derive(Debug)]
pub(crate) struct Norm {
    gain: Stored<HostBlock>,
    bias: Stored<HostBlock>,
    epsilon: f32,
}

/// The numbers of a [`Norm`].
#[derive(Clone, Copy)]
struct Factors<'a> {
    gain: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
}

fn keep(
    weight: &Weight,
    into: &mut RegionWriter<HostBlock>,
) -> Result<Stored<HostBlock>, BackendError> {
    let numbers = weight.to_f32();
    into.floats(numbers.len(), |place| place.copy_from_slice(&numbers))
}

/// The first `count` numbers of a weight; zeros, where there is none.
fn keep_or_zeros(
    weight: Option<&Weight>,
    count: usize,
    into: &mut RegionWriter<HostBlock>,
) -> Result<Stored<HostBlock>, BackendError> {
    let numbers = weight.map(Weight::to_f32).unwrap_or_default();
    into.floats(count, |place| {
        place.iter_mut().zip(numbers.iter()).for_each(|(place, &number)| *place = number);
    })
}

impl Norm {
    pub(crate) fn new(
        gain: &Weight,
        bias: Option<&Weight>,
        epsilon: f32,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Self, BackendError> {
        let columns = gain.shape().elements();
        let gain = keep(gain, into)?;
        Ok(Self { gain, bias: keep_or_zeros(bias, columns, into)?, epsilon })
    }

    fn factors(&self) -> Factors<'_> {
        let &Self { ref gain, ref bias, epsilon } = self;
        Factors { gain: gain.floats(), bias: bias.floats(), epsilon }
    }

    /// Normalises the first slices of each row in place, each by itself.
    #[inline(always)]
    pub(crate) fn apply_to_slices(&self, values: &mut [f32], columns: usize, width: usize) {
        let Factors { gain, bias, epsilon } = self.factors();
        for row in values.chunks_exact_mut(columns) {
            let factors = gain.chunks_exact(width).zip(bias.chunks_exact(width));
            for ((gain, bias), slice) in factors.zip(row.chunks_exact_mut(width)) {
                Factors { gain, bias, epsilon }.apply(slice);
            }
        }
    }

    /// Normalises each row of `values` in place.
    #[inline(always)]
    pub(crate) fn apply(&self, values: &mut [f32], columns: usize) {
        let norm = self.factors();
        values.chunks_exact_mut(columns).for_each(
            #[inline(always)]
            |row| norm.apply(row),
        );
    }
}

/// Adds `residual` to `values`, and normalises each row.
#[inline(always)]
pub(crate) fn add(residual: &[f32], norm: Option<&Norm>, values: &mut [f32], columns: usize) {
    let norm = norm.map(Norm::factors);
    let rows = residual.chunks_exact(columns).zip(values.chunks_exact_mut(columns));
    for (residual, row) in rows {
        for (value, &more) in row.iter_mut().zip(residual) {
            *value += more;
        }
        if let Some(norm) = norm {
            norm.apply(row);
        }
    }
}

impl Factors<'_> {
    /// Normalises `row` in place. The variance is taken around the mean, in a second pass: the
    /// one-pass formula loses it where the mean is large.
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "rows are far shorter than 2²⁴")]
    fn apply(self, row: &mut [f32]) {
        let scale = 1.0 / row.len() as f32;
        let mean = sum(row, |x| x) * scale;
        let variance = sum(row, |x| (x - mean) * (x - mean)) * scale;
        let inverse = 1.0 / (variance + self.epsilon).sqrt();
        for ((value, &gain), &bias) in row.iter_mut().zip(self.gain).zip(self.bias) {
            *value = ((*value - mean) * inverse).mul_add(gain, bias);
        }
    }
}

/// A table of rows that is read where the model file is mapped, so that only rows of tokens that
/// occur become resident; converted once if the file holds another format.
#[derive(Debug)]
struct Table {
    values: TableValues,
    columns: usize,
}

#[derive(Debug)]
enum TableValues {
    Mapped(TensorView),
    Converted(Stored<HostBlock>),
}

impl Table {
    fn new(weight: &Weight, into: &mut RegionWriter<HostBlock>) -> Result<Self, BackendError> {
        let values = match weight {
            Weight::Tensor(tensor) if tensor.lies_as_f32() => TableValues::Mapped(tensor.clone()),
            _ => TableValues::Converted(keep(weight, into)?),
        };
        Ok(Self { values, columns: weight.shape().columns })
    }

    fn values(&self) -> &[f32] {
        match &self.values {
            TableValues::Mapped(tensor) => {
                bytemuck::try_cast_slice(tensor.bytes()).unwrap_or_default()
            }
            TableValues::Converted(values) => values.floats(),
        }
    }

    /// Row `index`; empty if there is none, which the encoder has checked.
    fn row<'a>(&self, values: &'a [f32], index: u32) -> &'a [f32] {
        let start = index as usize * self.columns;
        values.get(start..start + self.columns).unwrap_or_default()
    }
}

/// Types that tokens have: of a first text and of a second.
pub(crate) const TYPES: usize = 2;

/// Word, position and type tables.
#[derive(Debug)]
pub(crate) struct Tables {
    words: Table,
    positions: Option<Table>,
    /// A row for each of the two types that tokens may have; zeros, where there is none.
    types: Stored<HostBlock>,
}

impl Tables {
    pub(crate) fn new(
        words: &Weight,
        positions: Option<&Weight>,
        types: Option<&Weight>,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Self, BackendError> {
        let columns = words.shape().columns;
        Ok(Self {
            words: Table::new(words, into)?,
            positions: positions.map(|table| Table::new(table, into)).transpose()?,
            types: keep_or_zeros(types, TYPES * columns, into)?,
        })
    }

    /// Writes the embeddings of some tokens, row by row, normalised if there is a norm.
    #[inline(always)]
    pub(crate) fn write(
        &self,
        ids: &[u32],
        places: &[u32],
        norm: Option<&Norm>,
        output: &mut [f32],
    ) {
        let words = self.words.values();
        let positions = self.positions.as_ref().map(|table| (table, table.values()));
        let (types, norm) = (self.types.floats(), norm.map(Norm::factors));
        let rows = output.chunks_exact_mut(self.words.columns.max(1));
        for ((&id, &place), output) in ids.iter().zip(places).zip(rows) {
            let (position, kind) = position_and_type(place);
            let (word, kinds) = (self.words.row(words, id), self.words.row(types, kind));
            if let Some((table, positions)) = positions {
                let terms = word.iter().zip(table.row(positions, position)).zip(kinds);
                for (value, ((&word, &place), &kind)) in output.iter_mut().zip(terms) {
                    *value = word + place + kind;
                }
            } else {
                for (value, (&word, &kind)) in output.iter_mut().zip(word.iter().zip(kinds)) {
                    *value = word + kind;
                }
            }
            if let Some(norm) = norm {
                norm.apply(output);
            }
        }
    }

    pub(crate) fn columns(&self) -> usize {
        self.words.columns
    }
}

/// Pools each sequence's rows of `input` into a row of `output`, in each way that there is.
#[inline(always)]
pub(crate) fn pool(
    poolings: Poolings,
    input: &[f32],
    starts: &[u32],
    output: &mut [f32],
    columns: usize,
) {
    let width = poolings.count() * columns;
    for (pair, output) in starts.windows(2).zip(output.chunks_exact_mut(width)) {
        let rows = pair[0] as usize * columns..pair[1] as usize * columns;
        for (pooling, output) in poolings.iter().zip(output.chunks_exact_mut(columns)) {
            pool_one(pooling, &input[rows.clone()], output);
        }
    }
}

/// Pools the rows of one sequence into `output`; zeros if there are none.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "sequences are far shorter than 2²⁴")]
fn pool_one(pooling: Pooling, rows: &[f32], output: &mut [f32]) {
    let columns = output.len().max(1);
    let mut all = rows.chunks_exact(columns);
    let count = all.len().max(1) as f32;
    output.fill(0.0);
    let divisor = match pooling {
        Pooling::Cls | Pooling::LastToken => {
            let only = if pooling == Pooling::Cls { all.next() } else { all.next_back() };
            if let Some(row) = only {
                output.copy_from_slice(row);
            }
            return;
        }
        Pooling::Max => {
            if let Some(first) = all.next() {
                output.copy_from_slice(first);
            }
            return all.for_each(|row| combine(output, row, |a, b| a.max(b)));
        }
        Pooling::WeightedMean => {
            for (index, row) in all.enumerate() {
                let weight = (index + 1) as f32;
                combine(output, row, |sum, x| sum + weight * x);
            }
            count * (count + 1.0) / 2.0
        }
        Pooling::Mean | Pooling::MeanSqrtLen => {
            all.for_each(|row| combine(output, row, |sum, x| sum + x));
            if pooling == Pooling::Mean { count } else { count.sqrt() }
        }
    };
    let scale = 1.0 / divisor;
    output.iter_mut().for_each(|value| *value *= scale);
}

#[inline(always)]
fn combine(output: &mut [f32], row: &[f32], join: impl Fn(f32, f32) -> f32) {
    for (value, &x) in output.iter_mut().zip(row) {
        *value = join(*value, x);
    }
}
