//! Matrix products beside a reference in `f64`.

use half::{bf16, f16};
use vecmill_backend_cuda::{
    CudaStream, DeviceSpan, Format, Gemm, GemmError, Gpu, Linear, PlainBlock, PlainSource, RowRange,
};
use vecmill_memory::Source;
use vecmill_model::Activation;

use super::device;

/// Behind each output, to see that nothing is written there.
const MARGIN: usize = 256;
/// Not a number in any format.
const POISON: u32 = 0xffff_ffff;

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
}

/// A device with what a product needs.
struct Bench {
    gemm: Gemm,
    source: PlainSource,
    stream: CudaStream,
    random: fastrand::Rng,
    formats: Vec<Format>,
}

fn encode(format: Format, value: f32) -> (f64, Vec<u8>) {
    match format {
        Format::F16 => {
            let value = f16::from_f32(value);
            (value.to_f64(), value.to_ne_bytes().to_vec())
        }
        Format::Bf16 => {
            let value = bf16::from_f32(value);
            (value.to_f64(), value.to_ne_bytes().to_vec())
        }
        Format::F32 => (f64::from(value), value.to_ne_bytes().to_vec()),
    }
}

fn decode(format: Format, bytes: &[u8]) -> f64 {
    match format {
        Format::F16 => f16::from_ne_bytes(bytes.try_into().unwrap()).to_f64(),
        Format::Bf16 => bf16::from_ne_bytes(bytes.try_into().unwrap()).to_f64(),
        Format::F32 => f64::from(f32::from_ne_bytes(bytes.try_into().unwrap())),
    }
}

/// The value of an FP8 number: a sign, four bits of exponent, three of mantissa (arXiv:2209.05433).
fn unit_roundoff(format: Format) -> f64 {
    let digits = match format {
        Format::F16 => 11,
        Format::Bf16 => 8,
        Format::F32 => 24,
    };
    0.5_f64.powi(digits)
}

impl Bench {
    fn new(device: &Gpu) -> Self {
        let mut formats = vec![Format::F16, Format::F32];
        if device.info().compute_capability >= (8, 0) {
            formats.push(Format::Bf16);
        }
        Self {
            gemm: Gemm::open(device).unwrap(),
            source: PlainSource::new(device),
            stream: device.stream().unwrap(),
            random: fastrand::Rng::with_seed(1),
            formats,
        }
    }

    /// `count` random numbers from -1 to 1.
    fn matrix(&mut self, format: Format, count: usize) -> Matrix {
        let random = (0..count).map(|_| encode(format, self.random.f32() * 2.0 - 1.0));
        let (values, bytes): (Vec<f64>, Vec<Vec<u8>>) = random.unzip();
        let bytes = bytes.concat();
        let block = self.source.allocate(bytes.len()).unwrap();
        self.stream.copy_from_host(&bytes, block.span(0..bytes.len()).unwrap()).unwrap();
        Matrix { values, block, bytes: bytes.len() }
    }

    /// Memory full of what is not a number.
    fn poisoned(&self, bytes: usize) -> PlainBlock {
        let bytes = bytes.next_multiple_of(4);
        let block = self.source.allocate(bytes).unwrap();
        self.stream.fill_u32(block.span(0..bytes).unwrap(), POISON).unwrap();
        block
    }
}

/// A product with operands of its own.
struct Case {
    format: Format,
    size: (usize, usize, usize),
    activation: Activation,
    input: Matrix,
    weight: Matrix,
    bias: Option<Matrix>,
    output: PlainBlock,
    workspace: PlainBlock,
}

impl Case {
    fn new(bench: &mut Bench, format: Format, size: (usize, usize, usize)) -> Self {
        let (rows, inputs, outputs) = size;
        let workspace_bytes = bench.gemm.workspace_bytes(rows, outputs);
        Self {
            format,
            size,
            activation: Activation::Identity,
            input: bench.matrix(format, rows * inputs),
            weight: bench.matrix(format, outputs * inputs),
            bias: Some(bench.matrix(format, outputs)),
            output: bench.poisoned(rows * outputs * format.bytes() + MARGIN),
            workspace: bench.poisoned(workspace_bytes),
        }
    }

    fn linear(&self) -> Linear<'_> {
        let (rows, inputs, outputs) = self.size;
        let output_bytes = rows * outputs * self.format.bytes();
        Linear {
            format: self.format,
            rows,
            inputs,
            outputs,
            input: self.input.span(),
            weight: self.weight.span(),
            bias: self.bias.as_ref().map(Matrix::span),
            activation: self.activation,
            output: self.output.span(0..output_bytes).unwrap(),
            workspace: self.workspace.span(0..self.workspace.bytes()).unwrap(),
        }
    }

    /// Runs it; what is behind the output must stay as it was.
    fn run(&self, bench: &Bench) -> (Vec<f64>, Activation) {
        let remaining = bench.gemm.multiply(&bench.stream, &self.linear()).unwrap();
        let mut bytes = vec![0; self.output.bytes()];
        bench.stream.copy_to_host(self.output.span(0..bytes.len()).unwrap(), &mut bytes).unwrap();
        let (output, margin) = bytes.split_at(self.linear().output.bytes());
        assert!(margin.iter().all(|byte| *byte == 0xff), "written behind the output");
        let output = output.chunks_exact(self.format.bytes());
        (output.map(|bytes| decode(self.format, bytes)).collect(), remaining)
    }

    /// Each element before the activation, and the sum of its terms' magnitudes.
    fn sums(&self) -> Vec<(f64, f64)> {
        let (rows, inputs, outputs) = self.size;
        let mut sums = Vec::with_capacity(rows * outputs);
        for input in self.input.values.chunks(inputs) {
            for (column, weight) in self.weight.values.chunks(inputs).enumerate() {
                let bias = self.bias.as_ref().map_or(0.0, |bias| bias.values[column]);
                let products = || input.iter().zip(weight).map(|(a, b)| a * b);
                let magnitude = products().map(f64::abs).sum::<f64>();
                sums.push((products().sum::<f64>() + bias, magnitude + bias.abs()));
            }
        }
        sums
    }

    /// Compares what the device computed with what it should have, to within rounding.
    fn check(&self, found: &[f64], applied: Activation) {
        let terms = self.size.1 as f64 + 2.0;
        for (index, ((sum, magnitude), found)) in self.sums().into_iter().zip(found).enumerate() {
            let (expected, approximation) = match applied {
                Activation::Relu => (sum.max(0.0), 0.0),
                // The hardware's tanh: relative error 2⁻¹¹ (PTX ISA, `tanh.approx.f32`).
                Activation::GeluTanh => (gelu_tanh(sum), sum.abs() * 0.5_f64.powi(11)),
                _ => (sum, 0.0),
            };
            let sums = terms * unit_roundoff(Format::F32);
            let tolerance = expected.abs() * unit_roundoff(self.format) * 1.01
                + magnitude * sums
                + approximation;
            assert!(
                (found - expected).abs() <= tolerance,
                "{:?} {:?} {applied:?} at {index}: {found} for {expected}, tolerance {tolerance}",
                self.format,
                self.size
            );
        }
    }
}

fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// What the library applied of `wanted` when `remaining` is left.
fn applied(wanted: Activation, remaining: Activation) -> Activation {
    if remaining == Activation::Identity {
        return wanted;
    }
    assert_eq!(remaining, wanted);
    Activation::Identity
}

#[test]
#[ignore = "needs a CUDA device"]
fn products_of_any_size_agree_with_the_reference() {
    let (_guard, device) = device();
    let mut bench = Bench::new(&device);
    let sizes = [
        (1, 8, 8),
        (1, 104, 8),
        (3, 16, 24),
        (1, 384, 1536),
        (17, 104, 40),
        (65, 384, 384),
        (130, 1536, 384),
        (1000, 136, 40),
        (511, 768, 2304),
    ];
    for format in bench.formats.clone() {
        for size in sizes {
            let mut case = Case::new(&mut bench, format, size);
            let (found, remaining) = case.run(&bench);
            assert_eq!(remaining, Activation::Identity);
            case.check(&found, Activation::Identity);
            case.bias = None;
            let (found, _) = case.run(&bench);
            case.check(&found, Activation::Identity);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn activations_are_applied_or_left_to_the_caller() {
    use Activation::{Gelu, GeluTanh, Relu, Silu, Tanh};
    let (_guard, device) = device();
    let mut bench = Bench::new(&device);
    for format in bench.formats.clone() {
        for size in [(19, 104, 40), (200, 384, 1536)] {
            let mut case = Case::new(&mut bench, format, size);
            for activation in [Relu, Gelu, GeluTanh, Silu, Tanh] {
                case.activation = activation;
                let (found, remaining) = case.run(&bench);
                if matches!(activation, Gelu | Silu | Tanh) {
                    assert_eq!(remaining, activation, "cuBLASLt does not know it");
                }
                case.check(&found, applied(activation, remaining));
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn tuned_results_agree_with_the_reference_too() {
    let (_guard, device) = device();
    let mut bench = Bench::new(&device);
    for format in bench.formats.clone() {
        for size in [(1, 384, 1536), (9, 104, 40), (130, 1536, 384), (511, 768, 768)] {
            let case = Case::new(&mut bench, format, size);
            let (before, _) = case.run(&bench);
            case.check(&before, Activation::Identity);
            let tuned = bench.gemm.tune(&bench.stream, &case.linear()).unwrap();
            assert!(tuned.candidates > 0 && tuned.best <= tuned.estimated * 51 / 50, "{tuned:?}");
            let (after, _) = case.run(&bench);
            case.check(&after, Activation::Identity);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_row_keeps_its_bits_within_a_range() {
    let (_guard, device) = device();
    let mut bench = Bench::new(&device);
    for format in bench.formats.clone() {
        for (rows, inputs, outputs) in [(20, 384, 1152), (120, 1536, 384), (1000, 768, 768)] {
            let range = RowRange::of(rows);
            let case = Case::new(&mut bench, format, (range.most(), inputs, outputs));
            let (most, _) = case.run(&bench);
            let mut linear = case.linear();
            linear.rows = range.fewest();
            let mut bytes = vec![0; linear.rows * outputs * format.bytes()];
            let output = case.output.span(0..bytes.len()).unwrap();
            bench.stream.fill_u32(output, POISON).unwrap();
            bench.gemm.multiply(&bench.stream, &linear).unwrap();
            bench.stream.copy_to_host(output, &mut bytes).unwrap();
            let fewest = bytes.chunks_exact(format.bytes()).map(|bytes| decode(format, bytes));
            let different = fewest.zip(&most).filter(|(fewest, most)| fewest != *most).count();
            assert_eq!(different, 0, "{format:?} {rows} rows: of {} elements", most.len());
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn what_does_not_fit_is_refused_with_its_name() {
    let (_guard, device) = device();
    let mut bench = Bench::new(&device);
    let case = Case::new(&mut bench, Format::F32, (8, 64, 32));
    let refused = |linear: Linear<'_>| bench.gemm.multiply(&bench.stream, &linear).unwrap_err();
    let short = refused(Linear { rows: 9, ..case.linear() });
    assert_eq!(short, GemmError::TooShort { operand: "input", needed: 9 * 64 * 4, found: 2048 });
    let odd = case.input.block.span(4..2048).unwrap();
    let odd = refused(Linear { rows: 7, input: odd, ..case.linear() });
    assert!(matches!(odd, GemmError::Misaligned { operand: "input", alignment: 64, .. }), "{odd}");
    let nothing = refused(Linear { inputs: 0, ..case.linear() });
    assert!(matches!(nothing, GemmError::NoAlgorithm { inputs: 0, .. }), "{nothing}");
    let none = Linear { rows: 0, ..case.linear() };
    assert_eq!(bench.gemm.multiply(&bench.stream, &none), Ok(Activation::Identity));
}
