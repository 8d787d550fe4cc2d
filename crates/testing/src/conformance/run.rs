//! The cases, run on a backend and compared: those of operations that most models have. `switches` has
//! what some families have and others lack.

use vecmill_encoder::{Backend, Kernel, LoadError, Lower, Prepared, RowBound, Weights, load_graph};
use vecmill_encoder::{Numbering, Shape, WeightPlan, load_weights};
use vecmill_memory::Pool;
use vecmill_model::{Activation, Pooling, Poolings, Window};

use super::Failure;
use super::cases::{Case, Maker, Random};
use super::interpret::{Found, compare};

const SLAB_BYTES: usize = 192 << 20;
const WEIGHT_BYTES: usize = 64 << 20;

/// Sequence lengths with a single token, tile edges, more than one tile, and empty ones, as padding
/// makes them at the end.
pub(super) const LENGTHS: [usize; 11] = [1, 7, 0, 64, 5, 6, 33, 130, 2, 0, 0];

/// Rows that a GPU of 16 multiprocessors deals out without remainder: there it may pay to fuse.
const FUSED_ROWS: usize = 2048;

/// Random graphs of a few blocks that are tried.
const RANDOM_GRAPHS: u64 = 12;

/// Runs every operation, and those that backends fuse, against the reference.
///
/// # Errors
/// The first difference that rounding doesn't explain.
pub fn operations<B: Backend>(backend: &B) -> Result<(), Failure> {
    let pool = Pool::new(backend.source(), SLAB_BYTES + WEIGHT_BYTES);
    let suite = Suite { backend, pool };
    suite.rows()?;
    suite.linear()?;
    suite.blocks()?;
    suite.deferred()?;
    suite.attention()?;
    suite.switches()?;
    (0..RANDOM_GRAPHS).try_for_each(|seed| suite.check(&random(seed)?))
}

pub(super) struct Suite<'b, B: Backend> {
    backend: &'b B,
    pool: Pool<B::Source>,
}

pub(super) const ACTIVATIONS: [Activation; 5] =
    [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh];

impl<B: Backend> Suite<'_, B> {
    /// What goes row by row.
    fn rows(&self) -> Result<(), Failure> {
        for columns in [32, 48, 100, 384] {
            for types in [true, false] {
                let mut maker = Maker::rows(70);
                let rows = maker.embed(columns, types)?;
                maker.output(rows);
                self.check(&maker.case(format!("embed 70×{columns} types={types}")))?;
            }
            for seen in [true, false] {
                let mut maker = Maker::rows(70);
                let computed =
                    if seen { maker.operand(columns)? } else { maker.embed(columns, true)? };
                let residual = maker.operand(columns)?;
                let sum = maker.add(computed, residual);
                let rows = maker.norm(sum)?;
                maker.output(rows);
                self.check(&maker.case(format!("add and normalise 70×{columns} seen={seen}")))?;
            }
            let several = [&Pooling::ALL[..], &[Pooling::LastToken, Pooling::Max]];
            let several = several.into_iter().filter_map(Poolings::new);
            for poolings in Pooling::ALL.into_iter().map(Poolings::from).chain(several) {
                let mut maker = Maker::new(&LENGTHS, Random::new(7)).with_stray();
                let rows = maker.operand(columns)?;
                let pooled = maker.pool(rows, poolings);
                maker.output(pooled);
                self.check(&maker.case(format!("pool {poolings} of {columns} columns")))?;
            }
        }
        Ok(())
    }

    fn linear(&self) -> Result<(), Failure> {
        let identity = Activation::Identity;
        let sizes = [(1, 32, 96), (5, 48, 100), (49, 100, 7), (130, 384, 1152), (200, 96, 33)];
        let sizes = sizes.map(|(rows, inputs, outputs)| (rows, inputs, outputs, identity));
        let activations = ACTIVATIONS.map(|activation| (30, 64, 128, activation));
        for (rows, inputs, outputs, activation) in sizes.into_iter().chain(activations) {
            let mut maker = Maker::rows(rows);
            let input = maker.operand(inputs)?;
            let output = maker.linear(input, outputs, activation)?;
            maker.output(output);
            self.check(&maker.case(format!("linear {rows}×{inputs}→{outputs} {activation:?}")))?;
        }
        let mut maker = Maker::rows(33);
        let input = maker.operand(64)?;
        maker.behind_all_layers();
        let output = maker.linear_without_bias(input, 48)?;
        maker.output(output);
        self.check(&maker.case("linear 33×64→48 without bias"))?;
        for (rows, inputs, columns) in
            [(1, 32, 32), (5, 48, 100), (70, 384, 384), (130, 1536, 384), (33, 256, 1024)]
        {
            let mut maker = Maker::rows(rows);
            let (input, residual) = (maker.operand(inputs)?, maker.operand(columns)?);
            let output = maker.linear_add_norm(input, residual)?;
            maker.output(output);
            let case = format!("linear, add and normalise {rows}×{inputs}→{columns}");
            self.check(&maker.case(case))?;
        }
        Ok(())
    }

    /// Feed-forward blocks.
    fn blocks(&self) -> Result<(), Failure> {
        for activation in ACTIVATIONS {
            self.check(&block([30, 64, 128], activation)?)?;
            self.check_if_fused([FUSED_ROWS, 384, 64], activation)?;
        }
        self.check(&block([70, 384, 1536], Activation::Gelu)?)?;
        self.check_if_fused([FUSED_ROWS, 256, 192], Activation::Gelu)
    }

    /// Counts only where the backend does with so many rows what it doesn't with few.
    fn check_if_fused(
        &self,
        [rows, hidden, intermediate]: [usize; 3],
        activation: Activation,
    ) -> Result<(), Failure> {
        let case = block([rows, hidden, intermediate], activation)?;
        let few = Shape { tokens: 30, sequences: 4, longest: 9 };
        let kernels = |shape| self.kernels(&case, RowBound::Bucket(shape));
        if kernels(case.shape) == kernels(few) { Ok(()) } else { self.check(&case) }
    }

    /// A layer's norm and its feed-forward block, of sizes whose normalisations may be deferred. Counts
    /// only where they are.
    fn deferred(&self) -> Result<(), Failure> {
        let activations = [Activation::Identity, Activation::Gelu, Activation::Relu];
        let sizes = [[5, 48, 32, 64], [130, 384, 768, 256], [300, 64, 1024, 128]];
        let all = activations.into_iter().flat_map(|a| sizes.map(|sizes| (sizes, a)));
        for (sizes, activation) in all.chain([([70, 64, 1024, 1536], Activation::Gelu)]) {
            let [rows, inputs, hidden, intermediate] = sizes;
            let mut maker = Maker::rows(rows);
            let (input, residual) = (maker.operand(inputs)?, maker.operand(hidden)?);
            let attended = maker.linear_add_norm(input, residual)?;
            let between = maker.linear(attended, intermediate, activation)?;
            maker.output(between);
            let output = maker.linear_add_norm(between, attended)?;
            maker.output(output);
            let case = format!("deferred {rows}×{inputs}→{hidden}→{intermediate} {activation:?}");
            let case = maker.case(case);
            let most = RowBound::UpTo(case.shape);
            let precision = |node| self.backend.lowering().precision(&case.graph, node, most);
            if case.graph.nodes().iter().any(|node| precision(node).deferred) {
                self.check(&case)?;
            }
        }
        Ok(())
    }

    fn attention(&self) -> Result<(), Failure> {
        for (heads, head_size) in [(2, 16), (3, 32), (2, 64), (1, 96), (2, 128)] {
            for biased in [false, true] {
                self.check(&attention(&LENGTHS, heads, head_size, biased)?)?;
            }
        }
        self.check(&attention(&[512, 300], 2, 32, true)?)
    }

    fn kernels(&self, case: &Case, rows: RowBound) -> Vec<Kernel<B>> {
        let program = self.backend.lowering().lower(&case.graph, rows);
        program.steps().iter().map(|step| step.kernel.clone()).collect()
    }

    /// As a program for the bucket, and as one that takes most memory, if that is another.
    pub(super) fn check(&self, case: &Case) -> Result<(), Failure> {
        let lower = self.backend.lowering();
        let mut plan = WeightPlan::default();
        case.graph.loads().for_each(|(_, node)| lower.store(&case.graph, node, &mut plan));
        let weights = load_weights::<_, _, LoadError>(&self.pool, &plan, |into| {
            Ok(load_graph(self.backend, &case.graph, &case.weights, into, &|_, _| {})?)
        })?;
        let unlimited = Shape { tokens: usize::MAX, sequences: usize::MAX, longest: usize::MAX };
        let shape = case.shape.bucket(unlimited);
        let (bucket, most) = (RowBound::Bucket(shape), RowBound::UpTo(shape));
        self.run(case, bucket, &weights)?;
        if self.kernels(case, most) == self.kernels(case, bucket) {
            return Ok(());
        }
        self.run(case, most, &weights)
    }

    fn run(
        &self,
        case: &Case,
        rows: RowBound,
        weights: &Weights<B::Weight>,
    ) -> Result<(), Failure> {
        let lower = self.backend.lowering();
        let prepared = Prepared::of(lower.lower(&case.graph, rows));
        let lease = self.pool.lease(prepared.plan().peak_bytes(), &self.backend.stream());
        let mut lease = lease.map_err(LoadError::from)?;
        let numbering = Numbering { first: 0, types: case.graph.reads_types() };
        prepared.run(self.backend, weights, (&case.batch, numbering, case.shape), &mut lease)?;
        let mut found = Vec::new();
        for (index, &output) in case.graph.outputs().iter().enumerate() {
            let place = prepared.output(index, case.shape);
            let place =
                place.ok_or_else(|| Failure::Program(format!("{}: no output", case.name)))?;
            let mut numbers = vec![0.0; place.rows * case.graph.value(output).columns];
            let fetched = self.backend.fetch(lease.block_mut(), place)?;
            self.backend.collect(fetched, &mut numbers)?;
            found.push(Found { value: output, numbers });
        }
        compare(case, &found, |node| lower.precision(&case.graph, node, rows))
    }
}

fn block(
    [rows, hidden, intermediate]: [usize; 3],
    activation: Activation,
) -> Result<Case, Failure> {
    let mut maker = Maker::rows(rows);
    let input = maker.operand(hidden)?;
    let output = maker.feed_forward(input, intermediate, activation)?;
    maker.output(output);
    Ok(maker.case(format!("feed forward {rows}×{hidden}→{intermediate} {activation:?}")))
}

fn attention(
    lengths: &[usize],
    heads: usize,
    head_size: usize,
    biased: bool,
) -> Result<Case, Failure> {
    let mut maker = Maker::new(lengths, Random::new(7)).with_stray();
    let qkv = maker.operand(3 * heads * head_size)?;
    let bias = biased.then(|| maker.buckets(heads)).transpose()?;
    let output = maker.attention(qkv, heads, Window::FULL, bias);
    maker.output(output);
    Ok(maker.case(format!("attention {lengths:?} {heads}×{head_size} biased={biased}")))
}

/// Some blocks behind each other, each on what one of those before computed; what lies between them is
/// seen or not.
pub(super) fn random(seed: u64) -> Result<Case, Failure> {
    let mut maker = Maker::new(&[3, 1, 17, 8], Random::new(seed));
    let columns = maker.random().one(&[32, 64, 96, 128]);
    let mut rows = vec![maker.operand(columns)?];
    for _ in 0..maker.random().one(&[2, 3, 4, 5]) {
        let (input, residual) = (maker.random().one(&rows), maker.random().one(&rows));
        let activation = maker.random().one(&ACTIVATIONS);
        let value = match maker.random().one(&[0, 1, 2, 3, 4]) {
            0 => maker.feed_forward(input, 2 * columns, activation)?,
            1 => {
                let sum = maker.add(input, residual);
                maker.norm(sum)?
            }
            2 => {
                let qkv = maker.linear(input, 3 * columns, Activation::Identity)?;
                maker.output(qkv);
                let attended = maker.attention(qkv, 2, Window::FULL, None);
                maker.linear_add_norm(attended, residual)?
            }
            _ => maker.linear_add_norm(input, residual)?,
        };
        if maker.random().one(&[true, false]) {
            maker.output(value);
        }
        rows.push(value);
    }
    let last = rows.pop().unwrap_or_else(|| unreachable!("the operand is there"));
    maker.output(last);
    let pooled = maker.pool(last, Pooling::Mean.into());
    maker.behind_all_layers();
    let output = maker.linear(pooled, 16, Activation::Tanh)?;
    maker.output(output);
    Ok(maker.case(format!("random graph {seed}")))
}
