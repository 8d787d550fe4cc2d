//! The operations in plain `f64`, and how far from them rounding may lead.

use vecmill_encoder::{NarrowPrecision, Precision};
use vecmill_model::{Activation, Heads, Pooling, Window};

/// An exact value and the largest error that rounding can cause.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounded {
    pub(super) value: f64,
    pub(super) tolerance: f64,
}

impl Bounded {
    pub(super) fn exact(value: f64) -> Self {
        Self { value, tolerance: 0.0 }
    }

    /// The largest magnitude that the rounded value can have.
    fn size(self) -> f64 {
        self.value.abs() + self.tolerance
    }

    /// The value, rounded to the storage format.
    pub(super) fn stored(self, precision: Precision) -> Self {
        let rounding = precision.storage * self.size() + precision.underflow;
        Self { tolerance: self.tolerance + rounding, ..self }
    }

    /// The value, rounded as an operand. What it is rounded to is known, unless an error before may
    /// carry it past the middle of two numbers.
    fn narrowed(self, narrow: NarrowPrecision) -> Self {
        let Self { value, tolerance } = self;
        let round = |x: f64| {
            let unit = 2.0 * narrow.operands * 2.0_f64.powf(x.abs().log2().floor());
            if x == 0.0 { x } else { (x / unit).round_ties_even() * unit }
        };
        let rounded = round(value);
        let (below, above) =
            (rounded - round(value - tolerance), round(value + tolerance) - rounded);
        // Numbers next to zero have fewer digits.
        let lost =
            if self.size() * narrow.operands < narrow.underflow { narrow.underflow } else { 0.0 };
        Self { value: rounded, tolerance: below.max(above) + 2.0 * lost }
    }
}

pub(super) type Matrix = Vec<Vec<f64>>;

/// γₙ of Higham's: the relative error of `count` roundings of one after another.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn gamma(count: usize, roundoff: f64) -> f64 {
    let product = count as f64 * roundoff;
    product / (1.0 - product)
}

/// What a linear layer makes of its input: itself, or narrow operands. Those are of what was stored,
/// or of what that was rounded from.
pub(super) fn operands(
    x: impl Iterator<Item = Bounded>,
    precision: Precision,
    narrow: Option<NarrowPrecision>,
) -> Vec<Bounded> {
    x.map(|x| narrow.map_or(x, |narrow| x.stored(precision).narrowed(narrow))).collect()
}

/// `activation(Σ x·w + b)`, stored; the bias, and the sum before the activation, may have been
/// stored as well.
pub(super) fn linear(
    x: &[Bounded],
    w: &[f64],
    bias: f64,
    activation: Activation,
    precision: Precision,
    accumulation: f64,
) -> Bounded {
    let sum_of = |of: &dyn Fn(Bounded, f64) -> f64| -> f64 {
        x.iter().zip(w).map(|(&x, &w)| of(x, w)).sum()
    };
    let value = sum_of(&|x, w| x.value * w) + bias;
    let sizes = sum_of(&|x, w| x.size() * w.abs()) + bias.abs();
    let tolerance = sum_of(&|x, w| x.tolerance * w.abs())
        + gamma(x.len() + 1, accumulation) * sizes
        + precision.storage * bias.abs();
    let sum = Bounded { value, tolerance }.stored(precision);
    if activation == Activation::Identity {
        return sum;
    }
    activated(sum, activation, precision).stored(precision)
}

/// An activation of a number.
fn activated(x: Bounded, activation: Activation, precision: Precision) -> Bounded {
    let value = activate(activation, x.value);
    // No activation here is steeper than 1.13; its own evaluation costs a few roundings of its
    // argument and result, or a part of the rounding that follows.
    let own = 16.0 * precision.accumulation * (x.size() + value.abs());
    let tolerance = 1.13 * x.tolerance + own + precision.storage / 16.0 * value.abs();
    Bounded { value, tolerance }
}

/// `activation(gate) · up`, stored; the activated gate may have been stored as well.
pub(super) fn gated(
    gate: Bounded,
    up: Bounded,
    activation: Activation,
    precision: Precision,
) -> Bounded {
    let gate = activated(gate, activation, precision).stored(precision);
    let value = gate.value * up.value;
    let tolerance = gate.tolerance * up.size() + gate.value.abs() * up.tolerance;
    let tolerance = tolerance + precision.accumulation * (value.abs() + tolerance);
    Bounded { value, tolerance }.stored(precision)
}

/// A row of queries, keys and values whose first two are turned by their position, stored.
pub(super) fn rotate(
    row: &[Bounded],
    heads: Heads,
    (position, frequencies): (usize, &[f32]),
    precision: Precision,
) -> Vec<Bounded> {
    let mut turned = row.to_vec();
    let pairs = frequencies.len();
    for first in (0..heads.queries + heads.keys).map(|head| head * heads.size) {
        for (pair, &frequency) in frequencies.iter().enumerate() {
            let angle = position as f64 * f64::from(frequency);
            // The angle, rounded once or twice, and its cosine and sine, rounded or nearly so.
            let off = precision.accumulation * (2.0 * angle + 4.0) + precision.storage / 16.0;
            let (x, y) = (row[first + pair], row[first + pair + pairs]);
            let (sin, cos) = angle.sin_cos();
            let of = |x: Bounded, cos: f64, y: Bounded, sin: f64| {
                let value = x.value * cos + y.value * sin;
                let exact = x.tolerance * cos.abs() + y.tolerance * sin.abs();
                let sizes = x.size() * (cos.abs() + off) + y.size() * (sin.abs() + off);
                let own = off * (x.size() + y.size()) + gamma(2, precision.accumulation) * sizes;
                Bounded { value, tolerance: exact + own }.stored(precision)
            };
            turned[first + pair] = of(x, cos, y, -sin);
            turned[first + pair + pairs] = of(y, cos, x, sin);
        }
    }
    turned
}

pub(super) fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::Identity => x,
    }
}

/// erf by its Taylor series; past 5 it is ±1 to more digits than the tests need.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// The terms' sum, term by term and added in the accumulation's format.
pub(super) fn sum(terms: &[Bounded], precision: Precision) -> Bounded {
    let value = terms.iter().map(|term| term.value).sum();
    let sizes: f64 = terms.iter().map(|term| term.size()).sum();
    let own = gamma(terms.len().saturating_sub(1), precision.accumulation) * sizes;
    Bounded { value, tolerance: own + terms.iter().map(|term| term.tolerance).sum::<f64>() }
}

/// Gain, bias and epsilon of a layer normalisation.
pub(super) struct Norm {
    pub(super) gain: Vec<f64>,
    pub(super) bias: Vec<f64>,
    pub(super) epsilon: f64,
}

impl Norm {
    /// Layer normalisation of one row, stored.
    pub(super) fn apply(&self, row: &[Bounded], precision: Precision) -> Vec<Bounded> {
        let (normal, _) = self.normalised(row, precision);
        normal.into_iter().map(|x| x.stored(precision)).collect()
    }

    /// The same where it is deferred: what is stored is gain · x, before the mean and the deviation are
    /// taken from it. Of that and the mean's share, sums lose a part.
    pub(super) fn deferred(&self, row: &[Bounded], precision: Precision) -> Vec<Bounded> {
        let (normal, least) = self.normalised(row, precision);
        let mean_of =
            |of: &dyn Fn(&Bounded) -> f64| row.iter().map(of).sum::<f64>() / row.len() as f64;
        let mean = mean_of(&|x| x.size());
        // The deviation may be that of the mean of squares less the mean's square.
        let cancelled = 1.0 + mean_of(&|x| x.size().powi(2)) / least.powi(2);
        let roundings = cancelled * gamma(row.len() + 8, precision.accumulation);
        let widened = |((normal, x), gain): ((Bounded, &Bounded), &f64)| {
            let size = x.size() * gain.abs();
            let stored = precision.storage * size + precision.underflow;
            let own = (stored + roundings * (size + stored + mean * gain.abs())) / least;
            Bounded { tolerance: normal.tolerance + own, ..normal }
        };
        normal.into_iter().zip(row).zip(&self.gain).map(widened).collect()
    }

    /// A row, normalised, and the least that its deviation can be.
    ///
    /// An error e of the centred row changes its deviation σ = √(mean of squares + ε), which is the
    /// length of a vector, by no more than e's root mean square (the triangle inequality).
    fn normalised(&self, row: &[Bounded], precision: Precision) -> (Vec<Bounded>, f64) {
        let count = row.len() as f64;
        let mean_of = |of: &dyn Fn(&Bounded) -> f64| row.iter().map(of).sum::<f64>() / count;
        let roundings = gamma(row.len() + 8, precision.accumulation);
        let mean = mean_of(&|x| x.value);
        let mean_off = mean_of(&|x| x.tolerance) + roundings * mean_of(&|x| x.size());
        let centred = |x: &Bounded| {
            let value = x.value - mean;
            let off = x.tolerance + mean_off;
            let tolerance = off + precision.accumulation * (value.abs() + off);
            Bounded { value, tolerance }
        };
        let deviation = (mean_of(&|x| centred(x).value.powi(2)) + self.epsilon).sqrt();
        let deviation_off = mean_of(&|x| centred(x).tolerance.powi(2)).sqrt();
        let least = deviation - deviation_off; // where it is not positive, nothing is known
        let normal = |x: &Bounded| {
            let Bounded { value, tolerance } = centred(x);
            let value = value / deviation;
            let off = (tolerance + value.abs() * deviation_off) / least;
            let tolerance = off + roundings * (value.abs() + off);
            if least > 0.0 {
                Bounded { value, tolerance }
            } else {
                Bounded { value, tolerance: f64::INFINITY }
            }
        };
        let scaled = |((x, gain), bias): ((&Bounded, &f64), &f64)| {
            let Bounded { value, tolerance } = normal(x);
            let product = Bounded { value: value * gain, tolerance: tolerance * gain.abs() };
            let product = Bounded {
                tolerance: product.tolerance + precision.accumulation * product.size(),
                ..product
            };
            sum(&[product, Bounded::exact(*bias)], precision)
        };
        (row.iter().zip(&self.gain).zip(&self.bias).map(scaled).collect(), least)
    }
}

/// What is added to scores.
pub(super) enum Bias {
    None,
    /// `[buckets, heads]` of relative position biases, and the farthest distance told apart.
    Buckets(Matrix, usize),
    Alibi,
}

/// Multi-head attention over rows of queries, keys and values.
pub(super) struct Attention {
    pub(super) heads: Heads,
    pub(super) window: Window,
    pub(super) bias: Bias,
    pub(super) precision: Precision,
}

impl Attention {
    /// A sequence's outputs, row by row.
    pub(super) fn sequence(&self, rows: &[Vec<f64>]) -> Vec<Bounded> {
        let places = (0..rows.len())
            .flat_map(|query| (0..self.heads.queries).map(move |head| (query, head)));
        places.flat_map(|(query, head)| self.attend(rows, query, head)).collect()
    }

    fn attend(&self, rows: &[Vec<f64>], query: usize, head: usize) -> Vec<Bounded> {
        let Heads { queries, keys: shared, size } = self.heads;
        let part = |row: &'_ Vec<f64>, head: usize| -> Vec<f64> {
            row[head * size..(head + 1) * size].to_vec()
        };
        let of_keys = queries + head * shared / queries;
        let sees = |key: usize| {
            let within =
                |distance: usize, most: Option<usize>| most.is_none_or(|most| distance <= most);
            match key <= query {
                true => within(query - key, self.window.left),
                false => within(key - query, self.window.right),
            }
        };
        let seen: Vec<usize> = (0..rows.len()).filter(|&key| sees(key)).collect();
        let keys: Matrix = seen.iter().map(|&key| part(&rows[key], of_keys)).collect();
        let values: Matrix = seen.iter().map(|&key| part(&rows[key], of_keys + shared)).collect();
        let bias = |&key: &usize| match &self.bias {
            Bias::Buckets(table, reach) => table[bucket(query, key, table.len(), *reach)][head],
            Bias::Alibi => -slope(head, queries) * query.abs_diff(key) as f64,
            Bias::None => 0.0,
        };
        let bias: Vec<f64> = seen.iter().map(bias).collect();
        attention(&part(&rows[query], head), &keys, &values, &bias, self.precision)
    }
}

/// ALiBi's slopes, as the paper makes them (arXiv:2108.12409): a geometric sequence that begins with its
/// own ratio; beyond a power of two, every other one of the sequence for twice as many.
fn slope(head: usize, heads: usize) -> f64 {
    let below = (0..).map(|exponent| 1usize << exponent).take_while(|&power| power <= heads);
    let power = below.last().unwrap_or(1);
    let geometric = |index: usize, count: usize| {
        let ratio = 2.0_f64.powf(-8.0 / count as f64);
        ratio.powi(i32::try_from(index + 1).unwrap_or(i32::MAX))
    };
    match head.checked_sub(power) {
        None => geometric(head, power),
        Some(beyond) => geometric(2 * beyond, 2 * power),
    }
}

/// One query against the keys and values of its sequence; `bias` has one number per key.
fn attention(
    query: &[f64],
    keys: &Matrix,
    values: &Matrix,
    bias: &[f64],
    precision: Precision,
) -> Vec<Bounded> {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let dot = |key: &Vec<f64>| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
    let size = |key: &Vec<f64>| query.iter().zip(key).map(|(q, k)| (q * k).abs()).sum::<f64>();
    let scores: Vec<f64> = keys.iter().zip(bias).map(|(key, b)| dot(key) * scale + b).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponents: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = exponents.iter().sum();
    // An absolute error of a score is a relative error of its weight.
    let sizes = keys.iter().zip(bias).map(|(key, b)| size(key) * scale + b.abs());
    let worst = sizes.fold(0.0, f64::max);
    let score_error = gamma(query.len() + 6, precision.accumulation) * worst;
    let relative = (2.0 * score_error).exp_m1()
        + gamma(2 * keys.len() + 12, precision.accumulation)
        + 2.0 * precision.storage;
    (0..query.len())
        .map(|column| {
            let terms = exponents.iter().zip(values).map(|(e, value)| e / total * value[column]);
            let value: f64 = terms.clone().sum();
            let size: f64 = terms.map(f64::abs).sum();
            // A weight near zero loses all its digits in storage; the largest one is 1.
            let lost: f64 =
                values.iter().map(|value| precision.underflow * value[column].abs()).sum();
            Bounded { value, tolerance: relative * size + 2.0 * lost }.stored(precision)
        })
        .collect()
}

/// T5's bucket of a distance (arXiv:1910.10683), by trying every boundary.
pub(super) fn bucket(query: usize, key: usize, buckets: usize, reach: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let distance = query.abs_diff(key);
    let boundary = |step: usize| {
        let exponent = step as f64 / (half - exact) as f64;
        exact as f64 * (reach as f64 / exact as f64).powf(exponent)
    };
    let far = (1..half - exact).filter(|&step| distance as f64 >= boundary(step) - 1e-6).count();
    let bucket = if distance < exact { distance } else { exact + far };
    if key > query { half + bucket } else { bucket }
}

/// One column of a sequence to one number.
pub(super) fn pool(column: &[f64], pooling: Pooling, precision: Precision) -> Bounded {
    let (Some(&first), Some(&last)) = (column.first(), column.last()) else {
        return Bounded::exact(0.0);
    };
    match pooling {
        Pooling::Cls => Bounded::exact(first),
        Pooling::LastToken => Bounded::exact(last),
        Pooling::Max => Bounded::exact(column.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        Pooling::Mean | Pooling::MeanSqrtLen | Pooling::WeightedMean => {
            let count = column.len() as f64;
            let weight = |index: usize| match pooling {
                Pooling::WeightedMean => (index + 1) as f64 / (count * (count + 1.0) / 2.0),
                Pooling::MeanSqrtLen => 1.0 / count.sqrt(),
                _ => 1.0 / count,
            };
            let weighted = column.iter().enumerate().map(|(index, x)| weight(index) * x);
            let size = weighted.clone().map(f64::abs).sum::<f64>();
            // A sum, a weight for each, and what all are divided by.
            let error = gamma(column.len() + 4, precision.accumulation) * size;
            Bounded { value: weighted.sum(), tolerance: error }.stored(precision)
        }
    }
}
