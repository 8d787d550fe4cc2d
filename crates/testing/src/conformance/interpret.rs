//! A graph, computed in plain `f64`, and how far from it rounding may lead.
//!
//! Where a value is an output, what follows is computed from the numbers that were found: a difference
//! is the operation's own.

use vecmill_encoder::Precision;
use vecmill_encoder::{AttentionBias, Node, Numbering, Op, RelativeBias, ValueId, WeightId};
use vecmill_model::Activation;

use super::Failure;
use super::cases::{Case, second_text};
use super::reference::{self, Bounded, Matrix};

/// What a backend computed of an output: a row for each token or sequence, stray ones too.
pub(super) struct Found {
    pub(super) value: ValueId,
    pub(super) numbers: Vec<f32>,
}

/// A value's rows, without stray ones.
struct Rows {
    rows: Vec<Vec<Bounded>>,
    /// Of rows whose normalisation is left to those who read them: the same, stored. So they are read
    /// by all but layers and residual sums.
    stored: Option<Vec<Vec<Bounded>>>,
}

struct Interpreter<'c> {
    case: &'c Case,
    values: Vec<Option<Rows>>,
}

/// Compares all that was found with what `case` should give, where the nodes have this precision.
pub(super) fn compare(
    case: &Case,
    found: &[Found],
    precision: impl Fn(&Node) -> Precision,
) -> Result<(), Failure> {
    let graph = &case.graph;
    let mut interpreter = Interpreter { case, values: (0..graph.values()).map(|_| None).collect() };
    for node in graph.nodes() {
        let own = precision(node);
        let then = graph.readers(node.output).next().map(&precision);
        let mut rows = interpreter.compute(node, own, then)?;
        let mut stored = (own.deferred && matches!(node.op, Op::Norm { .. })).then(|| {
            let row = |row: &Vec<Bounded>| row.iter().map(|x| x.stored(own)).collect();
            rows.iter().map(row).collect()
        });
        if let Some(found) = found.iter().find(|found| found.value == node.output) {
            let columns = graph.value(node.output).columns;
            let found: Vec<_> = found.numbers.chunks(columns.max(1)).take(rows.len()).collect();
            let seen = stored.as_mut().unwrap_or(&mut rows);
            check(&format!("{}, {:?}", case.name, node.op), seen, &found)?;
            let exact = |&x: &f32| Bounded::exact(x.into());
            *seen = found.iter().map(|row| row.iter().map(exact).collect()).collect();
        }
        interpreter.values[node.output.index()] = Some(Rows { rows, stored });
    }
    Ok(())
}

fn check(case: &str, rows: &[Vec<Bounded>], found: &[&[f32]]) -> Result<(), Failure> {
    let found = found.iter().flat_map(|row| row.iter());
    for (index, (&found, x)) in found.zip(rows.iter().flatten()).enumerate() {
        let &Bounded { value, tolerance } = x;
        let off = (f64::from(found) - value).abs();
        if off > tolerance || off.is_nan() {
            let (case, found, expected) = (case.to_owned(), found.into(), value);
            return Err(Failure::Value { case, index, found, expected, tolerance });
        }
    }
    Ok(())
}

impl Interpreter<'_> {
    /// The node's output. `then` is the precision of the first that reads it.
    fn compute(
        &self,
        node: &Node,
        precision: Precision,
        then: Option<Precision>,
    ) -> Result<Vec<Vec<Bounded>>, Failure> {
        let stored = |row: Vec<Bounded>| -> Vec<Bounded> {
            row.into_iter().map(|x| x.stored(precision)).collect()
        };
        Ok(match node.op {
            Op::Embed { words, positions, types } => {
                let sums = self.embed(words, positions, types, precision);
                if self.normalised_at_once(node) {
                    sums
                } else {
                    sums.into_iter().map(stored).collect()
                }
            }
            Op::Norm { gain, bias, epsilon } => {
                let gain = self.vector(gain);
                let bias = bias.map_or_else(|| vec![0.0; gain.len()], |bias| self.vector(bias));
                let norm = reference::Norm { gain, bias, epsilon: epsilon.into() };
                let rows = self.input(node, 0)?;
                let apply = |row: &Vec<Bounded>| match precision.deferred {
                    true => norm.deferred(row, precision),
                    false => norm.apply(row, precision),
                };
                rows.iter().map(apply).collect()
            }
            Op::NormSlices { gain, bias, epsilon, width } => {
                let gain = self.vector(gain);
                let bias = bias.map_or_else(|| vec![0.0; gain.len()], |bias| self.vector(bias));
                let slices = gain.chunks(width).zip(bias.chunks(width));
                let norm = |(gain, bias): (&[f64], &[f64])| {
                    let (gain, bias) = (gain.to_vec(), bias.to_vec());
                    reference::Norm { gain, bias, epsilon: epsilon.into() }
                };
                let norms: Vec<_> = slices.map(norm).collect();
                let apply = |row: &Vec<Bounded>| {
                    let slices = row.chunks(width).zip(&norms);
                    let mut all: Vec<_> =
                        slices.flat_map(|(slice, norm)| norm.apply(slice, precision)).collect();
                    all.extend(row[gain.len()..].iter().copied());
                    all
                };
                self.input(node, 0)?.iter().map(apply).collect()
            }
            Op::Add => {
                let deferred = then.is_some_and(|then| then.deferred);
                // The sum may be stored, where the residual is added with a layer's bias.
                let at_once =
                    self.normalised_at_once(node) && (deferred || !self.is_linear(node.inputs[0]));
                let computed = self.input(node, 0)?;
                let residual = self.input(node, 1)?;
                let pairs = computed.iter().zip(residual);
                let sums = pairs.map(|(x, y)| {
                    let terms = x.iter().zip(y);
                    terms.map(|(&x, &y)| reference::sum(&[x, y], precision)).collect()
                });
                if at_once { sums.collect() } else { sums.map(stored).collect() }
            }
            Op::Linear { weight, bias, activation } => {
                self.linear(node, (weight, bias), activation, precision)?
            }
            Op::GatedLinear { weight, bias, activation } => {
                let halves = self.linear(node, (weight, bias), Activation::Identity, precision)?;
                let gate = |row: &Vec<Bounded>| {
                    let (gates, ups) = row.split_at(row.len() / 2);
                    let pairs = gates.iter().zip(ups);
                    pairs.map(|(&g, &u)| reference::gated(g, u, activation, precision)).collect()
                };
                halves.iter().map(gate).collect()
            }
            Op::Rotate { heads, rotary } => {
                let rows = self.input(node, 0)?;
                let turned = self.starts().flat_map(|(start, end)| {
                    let frequencies = rotary.frequencies(end - start);
                    let turn = move |(position, row): (usize, &Vec<Bounded>)| {
                        reference::rotate(row, heads, (position, &frequencies), precision)
                    };
                    rows[start..end].iter().enumerate().map(turn)
                });
                turned.collect()
            }
            Op::Attention { heads, window, bias } => {
                let rows = self.exact_input(node)?;
                let bias = match bias {
                    None => reference::Bias::None,
                    Some(AttentionBias::Alibi) => reference::Bias::Alibi,
                    Some(AttentionBias::Buckets(RelativeBias { table, reach })) => {
                        reference::Bias::Buckets(self.matrix(table), reach)
                    }
                };
                let attention = reference::Attention { heads, window, bias, precision };
                let all = self.sequences(&rows).flat_map(|rows| attention.sequence(rows));
                let all: Vec<Bounded> = all.collect();
                all.chunks(heads.outputs()).map(<[Bounded]>::to_vec).collect()
            }
            Op::Pool(poolings) => {
                let rows = self.exact_input(node)?;
                let columns = self.case.graph.value(node.inputs[0]).columns;
                let pooled = self.sequences(&rows).map(|rows| {
                    let places = poolings
                        .iter()
                        .flat_map(|pooling| (0..columns).map(move |column| (pooling, column)));
                    let pool = |(pooling, column): (_, usize)| {
                        let numbers: Vec<f64> = rows.iter().map(|row| row[column]).collect();
                        reference::pool(&numbers, pooling, precision)
                    };
                    places.map(pool).collect()
                });
                pooled.collect()
            }
        })
    }

    fn embed(
        &self,
        words: WeightId,
        positions: Option<WeightId>,
        types: Option<WeightId>,
        precision: Precision,
    ) -> Vec<Vec<Bounded>> {
        let words = self.matrix(words);
        let positions = positions.map(|positions| self.matrix(positions));
        let types = types.map(|types| self.matrix(types));
        let indices = self.case.batch.indices(self.case.batch.shape(), Numbering::default());
        let places = self.starts().flat_map(|(start, end)| {
            let second = second_text(end - start);
            (0..end - start).map(move |place| (place, usize::from(place >= second)))
        });
        let rows = indices.iter().zip(places).map(|(&id, (place, kind))| {
            let kinds = types.as_ref().map(|types| &types[kind]);
            let word = &words[id as usize];
            let terms = word.iter().enumerate().map(|(column, &word)| {
                let place = positions.as_ref().map(|positions| positions[place][column]);
                let kind = kinds.map(|kinds| kinds[column]);
                let terms = [Some(word), place, kind].into_iter().flatten().map(Bounded::exact);
                reference::sum(&terms.collect::<Vec<_>>(), precision)
            });
            terms.collect()
        });
        rows.collect()
    }

    fn linear(
        &self,
        node: &Node,
        (weight, bias): (WeightId, Option<WeightId>),
        activation: Activation,
        precision: Precision,
    ) -> Result<Vec<Vec<Bounded>>, Failure> {
        let weight = self.matrix(weight);
        let bias = bias.map_or_else(|| vec![0.0; weight.len()], |bias| self.vector(bias));
        let narrow = precision.narrow;
        let sums = narrow.map_or(precision.accumulation, |narrow| narrow.accumulation);
        let rows = self.input(node, 0)?;
        let apply = |row: &Vec<Bounded>| {
            let x = reference::operands(row.iter().copied(), precision, narrow);
            let outputs = weight.iter().zip(&bias);
            let linear = |(w, &b): (&Vec<f64>, &f64)| {
                reference::linear(&x, w, b, activation, precision, sums)
            };
            outputs.map(linear).collect()
        };
        Ok(rows.iter().map(apply).collect())
    }

    /// Whether a sum is never stored: all that reads it is a norm.
    fn normalised_at_once(&self, node: &Node) -> bool {
        let graph = &self.case.graph;
        let is_norm = |node: &Node| matches!(node.op, Op::Norm { .. });
        graph.is_read_once(node.output) && graph.readers(node.output).all(is_norm)
    }

    fn is_linear(&self, value: ValueId) -> bool {
        matches!(self.case.graph.producer(value).op, Op::Linear { .. })
    }

    /// What a node reads.
    fn input(&self, node: &Node, index: usize) -> Result<&[Vec<Bounded>], Failure> {
        let missing = || Failure::Fixture(format!("{}: nothing is computed yet", self.case.name));
        let value = self.values[node.inputs[index].index()].as_ref().ok_or_else(missing)?;
        let normalises = match node.op {
            Op::Linear { .. } | Op::GatedLinear { .. } => node.layer.is_some(),
            Op::Add => index == 1 && self.is_linear(node.inputs[0]),
            _ => false,
        };
        Ok(value.stored.as_ref().filter(|_| !normalises).unwrap_or(&value.rows))
    }

    /// An input that was found.
    fn exact_input(&self, node: &Node) -> Result<Matrix, Failure> {
        let rows = self.input(node, 0)?;
        if rows.iter().flatten().any(|x| x.tolerance > 0.0) {
            return Err(Failure::Fixture(format!("{}: an operand is no output", self.case.name)));
        }
        Ok(rows.iter().map(|row| row.iter().map(|x| x.value).collect()).collect())
    }

    /// Where sequences start and end, in rows.
    fn starts(&self) -> impl Iterator<Item = (usize, usize)> {
        let shape = self.case.batch.shape();
        let indices = self.case.batch.indices(shape, Numbering::default());
        let starts = indices[indices.len() - shape.sequences - 1..].to_vec();
        (0..shape.sequences).map(move |i| (starts[i] as usize, starts[i + 1] as usize))
    }

    /// The rows of each sequence; of one that has several rows of `rows`, if they are of tokens.
    fn sequences<'r>(&self, rows: &'r Matrix) -> impl Iterator<Item = &'r [Vec<f64>]> {
        self.starts().map(|(start, end)| &rows[start..end])
    }

    fn matrix(&self, weight: WeightId) -> Matrix {
        let columns = self.case.graph.weight(weight).columns;
        let numbers = self.case.weights[weight.index()].to_f32();
        let row = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect();
        numbers.chunks(columns.max(1)).map(row).collect()
    }

    fn vector(&self, weight: WeightId) -> Vec<f64> {
        self.matrix(weight).into_iter().flatten().collect()
    }
}
