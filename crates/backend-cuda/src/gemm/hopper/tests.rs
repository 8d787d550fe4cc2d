//! The kernels beside sums in `f64`.

use half::{bf16, f16};
use vecmill_memory::Source;
use vecmill_model::Activation::{self, Gelu, GeluTanh, Identity, Relu, Silu, Tanh};

use super::*;
use crate::source::{PlainBlock, PlainSource};

#[test]
fn rows_that_are_no_whole_16_bytes_do_not_fit() {
    assert!(
        !HopperGemm::fits(100, 384) && !HopperGemm::fits(384, 100) && !HopperGemm::fits(0, 384)
    );
}

#[test]
fn tiles_cover_the_matrix() {
    let plain = |rows| Variant::activated(rows, Gelu, Widths::Wide);
    assert_eq!((plain(129).tiles(129, 193), plain(8193).tiles(8193, 192)), (4, 33));
    let norm =
        |rows, columns| Variant::normalised(rows, 384, columns).unwrap().tiles(rows, columns);
    assert_eq!((norm(129, 384), norm(129, 768), norm(257, 1024)), (3, 2, 2));
    assert_eq!(Variant::normalised(129, 384, 512), None);
}

/// Numbers on the host, rounded to their format, and the same on the device.
struct Matrix {
    values: Vec<f64>,
    block: PlainBlock,
    bytes: usize,
}

impl Matrix {
    fn span(&self) -> DeviceSpan<'_> {
        self.block.span(0..self.bytes).unwrap()
    }

    fn row(&self, row: usize, columns: usize) -> &[f64] {
        &self.values[row * columns..][..columns]
    }
}

struct Bench {
    source: PlainSource,
    stream: CudaStream,
    gemm: HopperGemm,
    random: fastrand::Rng,
}

/// Appends `value`, rounded to `format`, and returns it.
fn encode(format: Format, value: f32, bytes: &mut Vec<u8>) -> f64 {
    match format {
        Format::F16 => {
            let value = f16::from_f32(value);
            bytes.extend(value.to_le_bytes());
            value.to_f64()
        }
        Format::Bf16 => {
            let value = bf16::from_f32(value);
            bytes.extend(value.to_le_bytes());
            value.to_f64()
        }
        Format::F32 => {
            bytes.extend(value.to_le_bytes());
            value.into()
        }
    }
}

fn decode(format: Format, bytes: [u8; 2]) -> f64 {
    match format {
        Format::F16 => f16::from_le_bytes(bytes).to_f64(),
        _ => bf16::from_le_bytes(bytes).to_f64(),
    }
}

impl Bench {
    fn open(format: Format) -> Self {
        let device = Gpu::open(0).unwrap();
        let compiler = Arc::new(Compiler::new(&device, None).unwrap());
        let gemm = HopperGemm::new(&device, &compiler, format);
        Self {
            source: PlainSource::new(&device),
            stream: device.stream().unwrap(),
            gemm: gemm.expect("the device has compute capability 9.0"),
            random: fastrand::Rng::with_seed(1),
        }
    }

    /// Random numbers from -1 to 1.
    fn matrix(&mut self, format: Format, count: usize) -> Matrix {
        let mut bytes = Vec::with_capacity(count * format.bytes());
        let numbers = (0..count).map(|_| self.random.f32() * 2.0 - 1.0);
        let values = numbers.map(|number| encode(format, number, &mut bytes)).collect();
        let block = self.source.allocate(bytes.len()).unwrap();
        self.stream.copy_from_host(&bytes, block.span(0..bytes.len()).unwrap()).unwrap();
        Matrix { values, block, bytes: bytes.len() }
    }
}

/// A product with operands of its own.
struct Case {
    rows: usize,
    inputs: usize,
    outputs: usize,
    input: Matrix,
    weight: Matrix,
    bias: Matrix,
    output: Matrix,
}

impl Case {
    fn new(bench: &mut Bench, (rows, inputs, outputs): (usize, usize, usize)) -> Self {
        let format = bench.gemm.format;
        Self {
            rows,
            inputs,
            outputs,
            input: bench.matrix(format, rows * inputs),
            weight: bench.matrix(format, outputs * inputs),
            bias: bench.matrix(Format::F32, outputs),
            // With one row more, which must stay as it is.
            output: bench.matrix(format, (rows + 1) * outputs),
        }
    }

    fn product(&self) -> Product<'_> {
        let &Self { rows, inputs, outputs, .. } = self;
        let (input, weight, bias) = (self.input.span(), self.weight.span(), self.bias.span());
        let (output, widths) = (self.output.span(), Widths::Wide);
        let backwards = rows.is_multiple_of(2);
        Product { rows, inputs, outputs, input, weight, bias, output, widths, backwards }
    }

    /// Some rows of the output; the first and the last are among them.
    fn found(&self, bench: &Bench) -> Vec<(usize, Vec<f64>)> {
        self.found_of(bench, self.outputs)
    }

    /// The same of rows of so many columns.
    fn found_of(&self, bench: &Bench, columns: usize) -> Vec<(usize, Vec<f64>)> {
        let mut bytes = vec![0; self.output.bytes];
        bench.stream.copy_to_host(self.output.span(), &mut bytes).unwrap();
        let numbers = bytes.chunks_exact(2).map(|two| decode(bench.gemm.format, [two[0], two[1]]));
        let numbers: Vec<f64> = numbers.collect();
        let end = self.rows * columns;
        assert_eq!(&numbers[end..], &self.output.values[end..], "written behind the output");
        let rows = (0..self.rows).step_by(self.rows.div_ceil(40)).chain([self.rows - 1]);
        rows.map(|row| (row, numbers[row * columns..][..columns].to_vec())).collect()
    }

    /// A row's sums, and how far those of the device may be off.
    fn sums(&self, row: usize) -> Vec<(f64, f64)> {
        let input = self.input.row(row, self.inputs).iter().map(|&value| (value, 0.0));
        self.sums_of(&input.collect::<Vec<_>>())
    }

    /// Those of a row whose numbers have errors themselves.
    fn sums_of(&self, input: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let sum = |(weight, bias): (&[f64], &f64)| {
            let products = input.iter().zip(weight).map(|((a, _), b)| a * b);
            let magnitude: f64 = products.clone().map(f64::abs).sum::<f64>() + bias.abs();
            let inherited: f64 =
                input.iter().zip(weight).map(|((_, error), b)| error * b.abs()).sum();
            // Tensor cores cut where others round: 2^-23 each.
            let own = (self.inputs + 2) as f64 * magnitude * 2_f64.powi(-23);
            (products.sum::<f64>() + bias, inherited + own)
        };
        self.weight.values.chunks(self.inputs).zip(&self.bias.values).map(sum).collect()
    }
}

/// Half the distance of neighbours, relative to them.
fn roundoff(format: Format) -> f64 {
    if format == Format::F16 { 2_f64.powi(-11) } else { 2_f64.powi(-8) }
}

/// By the series of positive terms (NIST DLMF, 7.6.2).
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    (-x * x).exp() * sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Identity => x,
        Gelu => x * 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        GeluTanh => {
            let inner = std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044_715 * x.powi(3));
            x * 0.5 * (1.0 + inner.tanh())
        }
        Relu => x.max(0.0),
        Silu => x / (1.0 + (-x).exp()),
        Tanh => x.tanh(),
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn sums_with_bias_and_activation_are_within_rounding() {
    for format in [Format::F16, Format::Bf16] {
        let mut bench = Bench::open(format);
        for size in [(1, 72, 200), (129, 384, 384), (2049, 768, 2304)] {
            let case = Case::new(&mut bench, size);
            for activation in [Identity, Gelu, GeluTanh, Relu, Silu, Tanh] {
                bench.gemm.multiply(&bench.stream, &case.product(), activation).unwrap();
                for (row, found) in case.found(&bench) {
                    for ((sum, error), found) in case.sums(row).into_iter().zip(found) {
                        let expected = activated(activation, sum);
                        // No activation is steeper than 1.2; its approximation is finer than the
                        // format, relative to the larger of argument and result.
                        let scale = expected.abs() + sum.abs().min(1.0) / 16.0;
                        let allowed = 1.2 * error + 1.07 * roundoff(format) * scale + 1e-7;
                        assert!(
                            (found - expected).abs() <= allowed,
                            "{format:?} {size:?} {activation:?} row {row}: {found}, not {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn gated_sums_are_within_rounding() {
    for format in [Format::F16, Format::Bf16] {
        let mut bench = Bench::open(format);
        // Of rows, inputs, and gates with their ups.
        for size in [(1, 72, 16), (129, 384, 400), (2049, 768, 2304), (8200, 64, 208)] {
            for activation in [Gelu, Silu] {
                // Anew, as what is behind the output must stay.
                let case = Case::new(&mut bench, size);
                let product = case.product();
                bench.gemm.multiply_gated(&bench.stream, &product, None, activation).unwrap();
                for (row, found) in case.found_of(&bench, size.2 / 2) {
                    let sums = case.sums(row);
                    for (column, found) in found.into_iter().enumerate() {
                        let gate = column / 8 * 16 + column % 8;
                        let ((gate, off), (up, up_off)) = (sums[gate], sums[gate + 8]);
                        let let_through = activated(activation, gate);
                        let scale = let_through.abs() + gate.abs().min(1.0) / 16.0;
                        let gate_off = 1.2 * off + roundoff(format) / 16.0 * scale + 1e-6;
                        let expected = let_through * up;
                        let error = gate_off * (up.abs() + up_off) + let_through.abs() * up_off;
                        let allowed = error + 1.01 * roundoff(format) * expected.abs() + 1e-7;
                        assert!(
                            (found - expected).abs() <= allowed,
                            "{format:?} {size:?} {activation:?} row {row}, {column}: {found}, not \
                             {expected} ± {allowed}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn turned_heads_are_within_rounding() {
    use vecmill_model::{Heads, Rotary, RotaryScaling};
    const LONGEST: usize = 5000;
    const OFFSET: usize = 2;
    for format in [Format::F16, Format::Bf16] {
        let mut bench = Bench::open(format);
        for (rows, inputs, count) in [(1, 72, 1), (129, 384, 2), (8200, 64, 3)] {
            let (heads, outputs) = (Heads::new(count, 64), 3 * 64 * count);
            let rotary = Rotary { dims: 64, theta: 10_000.0, scaling: RotaryScaling::None };
            let case = Case::new(&mut bench, (rows, inputs, outputs));
            let positions: Vec<u8> = (0..rows)
                .flat_map(|row| u32::try_from(OFFSET + row % LONGEST).unwrap().to_le_bytes())
                .collect();
            let block = bench.source.allocate(positions.len()).unwrap();
            let span = block.span(0..positions.len()).unwrap();
            bench.stream.copy_from_host(&positions, span).unwrap();
            let rotation = Rotation { positions: span, heads, rotary };
            bench.gemm.multiply_rotated(&bench.stream, &case.product(), None, rotation).unwrap();
            let frequencies = rotary.frequencies(0);
            for (row, found) in case.found(&bench) {
                let sums = case.sums(row);
                for (column, found) in found.into_iter().enumerate() {
                    let (pair, first) = (column % 32, column % 64 < 32);
                    let other = if first { column + 32 } else { column - 32 };
                    let angle = (row % LONGEST) as f64 * f64::from(frequencies[pair]);
                    let (angle, roundings) = match column < 2 * 64 * count {
                        true => (angle, 2_f64.powi(-24) * angle + 2_f64.powi(-20)),
                        false => (0.0, 0.0),
                    };
                    let (sin, cos) = angle.sin_cos();
                    let ((x, x_off), (y, y_off)) = (sums[column], sums[other]);
                    let expected = x * cos + if first { -y } else { y } * sin;
                    let error = x_off + y_off + (x.abs() + y.abs()) * (roundings + 1e-6);
                    let allowed = error + 1.01 * roundoff(format) * expected.abs() + 1e-7;
                    assert!(
                        (found - expected).abs() <= allowed,
                        "{format:?} {rows} × {inputs} row {row}, {column}: {found}, not {expected} ± \
                         {allowed}"
                    );
                }
            }
        }
    }
}

/// All configurations, with whole tiles and parts of them: rows, inputs, columns.
const NORMALISED: [(usize, usize, usize); 10] = [
    (1, 384, 384),
    (129, 1536, 384),
    (2049, 384, 384),
    (16_386, 776, 384),
    (1, 768, 768),
    (1000, 776, 768),
    (2049, 1544, 768),
    (1, 1024, 1024),
    (300, 72, 1024),
    (2049, 4096, 1024),
];

#[test]
#[ignore = "needs a CUDA device"]
fn normalised_sums_are_within_rounding() {
    for format in [Format::F16, Format::Bf16] {
        let mut bench = Bench::open(format);
        for size in NORMALISED {
            let (rows, inputs, columns) = size;
            let case = Case::new(&mut bench, size);
            let residual = bench.matrix(format, rows * columns);
            let [gain, bias] = [(); 2].map(|()| bench.matrix(Format::F32, columns));
            let norm = NormOperands { gain: gain.span(), bias: bias.span(), epsilon: 1e-12 };
            let product = case.product();
            bench.gemm.multiply_norm(&bench.stream, &product, residual.span(), norm).unwrap();
            for (row, found) in case.found(&bench) {
                let sums = case.sums(row).into_iter().zip(residual.row(row, columns));
                let sums: Vec<_> = sums.map(|((sum, error), add)| (sum + add, error)).collect();
                let expected = normalised(&sums, [&gain, &bias], format);
                for ((expected, allowed), found) in expected.into_iter().zip(found) {
                    assert!(
                        (found - expected).abs() <= allowed,
                        "{format:?} {rows} x {inputs}, row {row}: {found}, not {expected}"
                    );
                }
            }
        }
    }
}

/// A row of sums with their errors, normalised and stored; and how far the device's may be off.
fn normalised(sums: &[(f64, f64)], [gain, bias]: [&Matrix; 2], format: Format) -> Vec<(f64, f64)> {
    let count = sums.len() as f64;
    let mean = sums.iter().map(|(sum, _)| sum).sum::<f64>() / count;
    let squares = sums.iter().map(|(sum, _)| (sum - mean).powi(2));
    let deviation = (squares.sum::<f64>() / count).sqrt();
    let worst = sums.iter().fold(0_f64, |worst, (_, error)| worst.max(*error));
    let scaled = |((sum, _), (gain, bias)): (&(f64, f64), (&f64, &f64))| {
        let normal = (sum - mean) / deviation;
        let expected = normal * gain + bias;
        // The errors of the sum, the mean and the deviation.
        let error = (2.0 + normal.abs()) * worst / deviation + 1e-6;
        (expected, error + 1.01 * roundoff(format) * expected.abs())
    };
    sums.iter().zip(gain.values.iter().zip(&bias.values)).map(scaled).collect()
}

/// Whole tiles and parts of them: rows, hidden size, columns in between.
const BLOCKS: [(usize, usize, usize); 5] =
    [(1, 384, 64), (129, 384, 1536), (130, 256, 1024), (2049, 384, 192), (20_000, 384, 64)];

#[test]
#[ignore = "needs a CUDA device"]
fn feed_forward_blocks_are_within_rounding() {
    for format in [Format::F16, Format::Bf16] {
        let mut bench = Bench::open(format);
        for (size, activation) in BLOCKS.into_iter().zip([Gelu, Gelu, Silu, Tanh, Relu]) {
            let (rows, hidden, intermediate) = size;
            let first = Case::new(&mut bench, (rows, hidden, intermediate));
            let second = Case::new(&mut bench, (rows, intermediate, hidden));
            let [gain, bias] = [(); 2].map(|()| bench.matrix(Format::F32, hidden));
            let block = FeedForward {
                rows,
                hidden,
                intermediate,
                input: first.input.span(),
                up: (first.weight.span(), first.bias.span()),
                activation,
                down: (second.weight.span(), second.bias.span()),
                norm: NormOperands { gain: gain.span(), bias: bias.span(), epsilon: 1e-12 },
                output: second.output.span(),
                backwards: rows.is_multiple_of(2),
            };
            bench.gemm.feed_forward(&bench.stream, &block).unwrap();
            for (row, found) in second.found(&bench) {
                // No activation is steeper than 1.2.
                let wide = first.sums(row).into_iter().map(|(sum, error)| {
                    let value = activated(activation, sum);
                    let scale = value.abs() + sum.abs().min(1.0) / 16.0;
                    (value, 1.2 * error + 1.07 * roundoff(format) * scale + 1e-7)
                });
                let wide: Vec<_> = wide.collect();
                let residual = first.input.row(row, hidden);
                let sums = second.sums_of(&wide).into_iter().zip(residual);
                let sums: Vec<_> = sums.map(|((sum, error), add)| (sum + add, error)).collect();
                let expected = normalised(&sums, [&gain, &bias], format);
                for ((expected, allowed), found) in expected.into_iter().zip(found) {
                    assert!(
                        (found - expected).abs() <= allowed,
                        "{format:?} {size:?}, row {row}: {found}, not {expected} ± {allowed}"
                    );
                }
            }
        }
    }
}
