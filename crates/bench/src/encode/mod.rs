//! The encoder alone: from tokens on the host to vectors on the host, without text, queue or HTTP.
//!
//! `measure` is the same for every backend; here is which one and what is printed.

mod measure;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use vecmill_backend_cpu::CpuBackend;
use vecmill_backend_cuda::{CudaBackend, Gpu};
use vecmill_encoder::{Backend, Encoder, Shape};
use vecmill_lab::lengths::Lengths;
use vecmill_lab::results;
use vecmill_memory::Pool;
use vecmill_model::{DType, Model, Pooling};

use crate::Outcome;
use measure::{Bench, Latency, Throughput};

/// Arguments of `vecmill-bench encode`.
#[derive(Debug, Args)]
pub(crate) struct EncodeArguments {
    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// cpu, or cuda:0 and so on
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number format of weights and activations [default: float32 on the CPU, float16 on a GPU]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// How token vectors become one: mean, cls, max, last-token, … [default: as the model says]
    #[arg(long)]
    pooling: Option<Pooling>,
    /// Tokens of each text, or mixed; several are measured one after the other
    #[arg(long, value_delimiter = ',', default_value = "16,128,512,mixed")]
    lengths: Vec<Lengths>,
    /// Most tokens of a batch
    #[arg(long, default_value_t = 32_768)]
    tokens: usize,
    /// Batches that are started before the first is waited for [default: what the device suggests]
    #[arg(long)]
    in_flight: Option<usize>,
    /// Tokens of the text whose latency is measured
    #[arg(long, default_value_t = 12)]
    short: usize,
    /// Seconds before counting starts
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Seconds of one of the windows that count
    #[arg(long, default_value_t = 0.4)]
    window: f64,
    /// Windows for each length
    #[arg(long, default_value_t = 5)]
    windows: usize,
    /// Most memory for batches, in MiB
    #[arg(long, default_value_t = 16 << 10)]
    memory: usize,
    /// Name of the measurement in the results
    #[arg(long, default_value = "")]
    name: String,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How long kernels may be compiled and ways chosen, as at the start of a server.
const PRACTICE: Duration = Duration::from_secs(60);

/// A number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    Float32,
    Float16,
    Bfloat16,
    Fp8,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::F32,
            Dtype::Float16 => Self::F16,
            Dtype::Bfloat16 => Self::BF16,
            Dtype::Fp8 => Self::F8E4M3,
        }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    what: &'static str,
    name: String,
    model: String,
    dtype: Dtype,
    /// If it is not the model's own.
    pooling: Option<&'static str>,
    in_flight: usize,
    warm_up_seconds: f64,
    window_seconds: f64,
    throughput: Vec<Throughput>,
    latency: Latency,
}

/// Measures and prints a table.
pub(crate) fn run(arguments: &EncodeArguments) -> Outcome {
    match (arguments.device.as_str(), arguments.dtype) {
        ("cpu", None | Some(Dtype::Float32)) => {
            let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let device = format!("cpu, {threads} threads");
            run_on(CpuBackend::new(threads)?, Dtype::Float32, &device, arguments)
        }
        ("cpu", Some(_)) => Err("the CPU computes in float32 only".into()),
        (name, dtype) => {
            let dtype = dtype.unwrap_or(Dtype::Float16);
            let device = open(name)?;
            let description = format!("{}, {name}", device.info().name);
            let cache = std::env::temp_dir().join("vecmill-kernels");
            let backend = CudaBackend::on(device, dtype.into(), Some(cache))?;
            run_on(backend, dtype, &description, arguments)
        }
    }
}

/// A GPU, `cuda:0`, or a part of one, `cuda:0/sms=32`.
pub(crate) fn open(name: &str) -> Result<Gpu, Box<dyn Error>> {
    let unknown = || format!("no device {name:?}: expected cpu, cuda:0 or cuda:0/sms=32");
    let gpu = name.strip_prefix("cuda:").ok_or_else(unknown)?;
    let Some((ordinal, multiprocessors)) = gpu.split_once("/sms=") else {
        return Ok(Gpu::open(gpu.parse().map_err(|_| unknown())?)?);
    };
    let ordinal = ordinal.parse().map_err(|_| unknown())?;
    Ok(Gpu::open_part(ordinal, multiprocessors.parse().map_err(|_| unknown())?)?)
}

fn run_on<B: Backend>(
    backend: B,
    dtype: Dtype,
    device: &str,
    arguments: &EncodeArguments,
) -> Outcome {
    let pool = Pool::new(backend.source(), arguments.memory << 20);
    let encoder = load(backend, arguments, &pool)?;
    let in_flight = arguments.in_flight.unwrap_or(encoder.backend().in_flight()).max(1);
    encoder.warm_up(&pool, arguments.tokens, PRACTICE, &|_, _| {})?;
    let bench = Bench { encoder: &encoder, pool: &pool, in_flight, tokens: arguments.tokens };
    let figures = measure(&bench, dtype, arguments)?;
    figures.print(device)?;
    results::write(arguments.json.as_deref(), device, &figures)
}

fn load<B: Backend>(
    backend: B,
    arguments: &EncodeArguments,
    pool: &Pool<B::Source>,
) -> Result<Encoder<B>, Box<dyn Error>> {
    let (model, tokens) = (Model::open_as(&arguments.model, arguments.pooling)?, arguments.tokens);
    let encoder = Encoder::load(backend, &model, arguments.pooling, pool, &|_, _| {})?;
    let longest = encoder.limits().max_tokens;
    Ok(encoder.with_largest(Shape { tokens, sequences: tokens, longest }))
}

fn measure<B: Backend>(
    bench: &Bench<'_, B>,
    dtype: Dtype,
    arguments: &EncodeArguments,
) -> Result<Figures, Box<dyn Error>> {
    let warm_up = Duration::try_from_secs_f64(arguments.warm_up)?;
    let window = Duration::try_from_secs_f64(arguments.window)?;
    let throughput = |&lengths| bench.throughput(lengths, warm_up, window, arguments.windows);
    let model = arguments.model.file_name().unwrap_or_default();
    Ok(Figures {
        what: "encode",
        name: arguments.name.clone(),
        model: model.to_string_lossy().into_owned(),
        dtype,
        pooling: arguments.pooling.map(Pooling::name),
        in_flight: bench.in_flight,
        warm_up_seconds: arguments.warm_up,
        window_seconds: arguments.window,
        throughput: arguments.lengths.iter().map(throughput).collect::<Result<_, _>>()?,
        latency: bench.latency(arguments.short)?,
    })
}

impl Figures {
    fn print(&self, device: &str) -> Outcome {
        let Self { model, dtype, in_flight, latency, .. } = self;
        results::line(&format!("{model} · {device} · {dtype:?} · {in_flight} in flight"))?;
        for row in &self.throughput {
            results::line(&format!(
                "{:>6} tokens: {:>12.0} tokens/s (min {:.0}, max {:.0}), {:.0} embeddings/s, \
                 {} allocations while measured",
                row.lengths.to_string(),
                row.tokens_per_second,
                row.slowest_window,
                row.fastest_window,
                row.embeddings_per_second,
                row.memory.driver_calls,
            ))?;
        }
        let Latency { tokens, p50_ms, p99_ms, .. } = latency;
        results::line(&format!(
            "one text of {tokens} tokens: p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms"
        ))?;
        Ok(())
    }
}
