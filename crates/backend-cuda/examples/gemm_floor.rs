//! The time of all matrix products of one encoder's forward pass, alone: what is left if everything
//! else took no time. Prints a line per number of tokens, by the library's own choice of algorithms
//! and by tuned ones.
//!
//! `gemm_floor HIDDEN INTERMEDIATE LAYERS FORMAT TOKENS...`, for example
//! `gemm_floor 384 1536 6 f16 32 512 16384`
//!
//! The choice behind it: each layer has weights of its own, and the products run in the order of the
//! forward pass, so that what is in the caches is what would be there. All operands are random,
//! because a GPU computes faster with zeros.
#![expect(clippy::print_stdout, reason = "a program that prints its result")]

use std::error::Error;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use vecmill_backend_cuda::{
    CudaEvent, CudaStream, DeviceSpan, Format, Gemm, Gpu, Linear, PlainBlock, PlainSource,
};
use vecmill_memory::Source;
use vecmill_model::Activation;

type Failure = Box<dyn Error>;

/// How often the pass runs for one figure, which is the median.
const PASSES: usize = 21;

/// The sizes of an encoder.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    format: Format,
}

impl Sizes {
    /// Inputs and outputs of a layer's products, in order: queries, keys and values; what attention
    /// gave; up; down.
    fn products(&self) -> [(&'static str, usize, usize); 4] {
        let Self { hidden, intermediate, .. } = *self;
        [
            ("qkv", hidden, 3 * hidden),
            ("attention output", hidden, hidden),
            ("up", hidden, intermediate),
            ("down", intermediate, hidden),
        ]
    }

    fn widest(&self) -> usize {
        self.intermediate.max(3 * self.hidden)
    }

    fn operations(&self, tokens: usize) -> f64 {
        let layer: usize =
            self.products().iter().map(|(_, inputs, outputs)| inputs * outputs).sum();
        2.0 * tokens as f64 * (self.layers * layer) as f64
    }
}

/// A device with memory for the products of the longest pass.
struct Floor {
    sizes: Sizes,
    gemm: Gemm,
    device: Gpu,
    stream: CudaStream,
    /// Of each layer, and of each product in it: weight and bias.
    weights: Vec<[(PlainBlock, PlainBlock); 4]>,
    /// Input and output, in turns.
    activations: [PlainBlock; 2],
    workspace: PlainBlock,
}

fn all(block: &PlainBlock) -> Result<DeviceSpan<'_>, Failure> {
    Ok(block.span(0..block.bytes())?)
}

/// Memory full of numbers between `-most` and `most`.
fn random(
    source: &PlainSource,
    stream: &CudaStream,
    format: Format,
    elements: usize,
    most: f32,
) -> Result<PlainBlock, Failure> {
    let numbers = (0..elements).map(|_| most * (2.0 * fastrand::f32() - 1.0));
    let bytes: Vec<u8> = match format {
        Format::F16 => numbers.flat_map(|x| f16::from_f32(x).to_ne_bytes()).collect(),
        Format::Bf16 => numbers.flat_map(|x| bf16::from_f32(x).to_ne_bytes()).collect(),
        Format::F32 => numbers.flat_map(f32::to_ne_bytes).collect(),
    };
    let block = source.allocate(bytes.len())?;
    stream.copy_from_host(&bytes, block.span(0..bytes.len())?)?;
    Ok(block)
}

impl Floor {
    fn new(sizes: Sizes, most_tokens: usize) -> Result<Self, Failure> {
        let device = Gpu::open(0)?;
        let (source, stream) = (PlainSource::new(&device), device.stream()?);
        let gemm = Gemm::open(&device)?;
        let random = |elements, most| random(&source, &stream, sizes.format, elements, most);
        let mut weights = Vec::new();
        for _ in 0..sizes.layers {
            let [a, b, c, d] = sizes.products().map(|(_, inputs, outputs)| -> Result<_, Failure> {
                // So that results are about as large as inputs, however many layers there are.
                let most = (3.0 / inputs as f32).sqrt();
                Ok((random(inputs * outputs, most)?, random(outputs, 0.01)?))
            });
            weights.push([a?, b?, c?, d?]);
        }
        let widest = sizes.widest();
        let activations = [random(most_tokens * widest, 1.0)?, random(most_tokens * widest, 1.0)?];
        let workspace = source.allocate(gemm.workspace_bytes(most_tokens, widest))?;
        Ok(Self { sizes, gemm, device, stream, weights, activations, workspace })
    }

    fn linear(&self, tokens: usize, layer: usize, product: usize) -> Result<Linear<'_>, Failure> {
        let (_, inputs, outputs) = self.sizes.products()[product];
        let (weight, bias) = &self.weights[layer][product];
        let [even, odd] = &self.activations;
        let (input, output) = if product.is_multiple_of(2) { (even, odd) } else { (odd, even) };
        Ok(Linear {
            format: self.sizes.format,
            rows: tokens,
            inputs,
            outputs,
            input: all(input)?,
            weight: all(weight)?,
            bias: Some(all(bias)?),
            activation: Activation::Identity,
            output: all(output)?,
            workspace: all(&self.workspace)?,
        })
    }

    fn pass(&self, tokens: usize) -> Result<(), Failure> {
        for layer in 0..self.sizes.layers {
            for product in 0..4 {
                self.gemm.multiply(&self.stream, &self.linear(tokens, layer, product)?)?;
            }
        }
        Ok(())
    }

    /// The median of the passes' times on the device, which starts when all is enqueued, and of the
    /// host's for enqueueing one.
    fn time(&self, tokens: usize) -> Result<(Duration, Duration), Failure> {
        self.pass(tokens)?;
        let (mut on_device, mut on_host) = (Vec::new(), Vec::new());
        for _ in 0..PASSES {
            let mut events: [CudaEvent; 2] =
                [self.device.timed_event()?, self.device.timed_event()?];
            let held = self.stream.hold()?;
            self.stream.record(&mut events[0])?;
            let start = Instant::now();
            self.pass(tokens)?;
            on_host.push(start.elapsed());
            self.stream.record(&mut events[1])?;
            drop(held);
            events[1].synchronize()?;
            on_device.push(events[1].time_since(&events[0])?);
        }
        Ok((median(on_device), median(on_host)))
    }

    fn tune(&self, tokens: usize) -> Result<(), Failure> {
        for product in 0..4 {
            let start = Instant::now();
            let tuned = self.gemm.tune(&self.stream, &self.linear(tokens, 0, product)?)?;
            println!(
                "    {:<17} {:>9.1} µs, then {:>9.1} µs: best of {:>2}, tuned in {:.0} ms",
                self.sizes.products()[product].0,
                tuned.estimated.as_secs_f64() * 1e6,
                tuned.best.as_secs_f64() * 1e6,
                tuned.candidates,
                start.elapsed().as_secs_f64() * 1e3,
            );
        }
        Ok(())
    }

    fn report(&self, tokens: usize, how: &str) -> Result<(), Failure> {
        let (on_device, on_host) = self.time(tokens)?;
        println!(
            "{tokens:>7} tokens, {how:<9}: {:>9.1} µs on the device, {:>7.1} TFLOP/s; the host \
             enqueues for {:>6.1} µs",
            on_device.as_secs_f64() * 1e6,
            self.sizes.operations(tokens) / on_device.as_secs_f64() / 1e12,
            on_host.as_secs_f64() * 1e6,
        );
        Ok(())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [hidden, intermediate, layers, format, tokens @ ..] = arguments.as_slice() else {
        return Err("usage: gemm_floor HIDDEN INTERMEDIATE LAYERS f16|bf16|f32 TOKENS...".into());
    };
    let format = match format.as_str() {
        "f16" => Format::F16,
        "bf16" => Format::Bf16,
        "f32" => Format::F32,
        other => return Err(format!("no format {other}: f16, bf16 or f32").into()),
    };
    let (hidden, intermediate) = (hidden.parse()?, intermediate.parse()?);
    let sizes = Sizes { hidden, intermediate, layers: layers.parse()?, format };
    let tokens = tokens.iter().map(|tokens| tokens.parse()).collect::<Result<Vec<usize>, _>>()?;
    let floor = Floor::new(sizes, tokens.iter().copied().max().unwrap_or(1))?;
    let (major, minor, patch) = floor.gemm.version();
    let gpu = &floor.device.info().name;
    println!("{sizes:?} on {gpu}, cuBLASLt {major}.{minor}.{patch}");
    for tokens in tokens {
        floor.report(tokens, "estimated")?;
        floor.tune(tokens)?;
        floor.report(tokens, "tuned")?;
    }
    Ok(())
}
