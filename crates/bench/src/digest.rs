//! What a model computes and how its memory is planned, as digests: two builds that say the same
//! lines compute the same vectors, to the bit, and lay the same buffers at the same places.
//!
//! - `vector` lines have the vectors of batches: of made tokens for every model, and of texts for
//!   those whose tokenizer is asked for. Nothing is tuned, so that the same kernels run each time.
//! - `plan` lines have the steps, buffers and peak of [`SHAPES`] of batches, for each kind of
//!   device on paper.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use sha2::{Digest as _, Sha256};
use vecmill_backend_cpu::{CpuBackend, CpuLowering};
use vecmill_backend_cuda::{CudaBackend, CudaLowering};
use vecmill_encoder::{Backend, Batch, Encoder, Lower, Programs, RowBound, Shape};
use vecmill_engine::{Tokenizer, Truncation};
use vecmill_lab::results;
use vecmill_memory::{Plan, Pool};
use vecmill_model::{DType, Model};

use crate::dummy::Size;
use crate::encode::{Dtype, open};
use crate::{Outcome, dummy, tokenize};

/// Arguments of `vecmill-bench digest`.
#[derive(Debug, Args)]
pub(crate) struct DigestArguments {
    /// Folder of folders, each a model; made tokens are embedded and batches planned
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Folder of a model whose tokenizer is used for --texts
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Texts, one JSON object with "text" a line
    #[arg(long, value_name = "FILE", requires = "model")]
    texts: Option<PathBuf>,
    /// cpu, or cuda:0 and so on
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number formats of a GPU
    #[arg(long, value_enum, value_delimiter = ',', default_value = "float16")]
    dtypes: Vec<Dtype>,
    /// Plans as well, for all kinds of devices
    #[arg(long)]
    plans: bool,
    /// With each plan, all of its buffers
    #[arg(long, requires = "plans")]
    verbose: bool,
}

/// Tokens of the batches that are planned and computed.
const TOKENS: [usize; 15] =
    [1, 2, 7, 16, 33, 64, 100, 255, 512, 513, 1024, 2000, 4096, 8200, 16_384];

/// Tokens of one of the batches' sequences, at most: as many as there are, or few.
const LONGEST: [usize; 2] = [usize::MAX, 17];

/// Of the batches that are planned for each model.
const SHAPES: usize = TOKENS.len() * LONGEST.len();

/// The most tokens of a batch that is computed.
const COMPUTED: usize = 2000;

/// Texts of a batch.
const TEXTS: usize = 16;

const MEMORY: usize = 4 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints the digests.
pub(crate) fn run(arguments: &DigestArguments) -> Outcome {
    if arguments.plans {
        plans(arguments)?;
    }
    if arguments.device == "cpu" {
        // Two threads wherever this runs: what each computes does not depend on their number.
        let backend = || Ok(CpuBackend::new(2)?);
        return vectors(arguments, "cpu float32", backend);
    }
    for &dtype in &arguments.dtypes {
        let name = format!("{} {dtype:?}", arguments.device).to_lowercase();
        let cache = std::env::temp_dir().join("vecmill-kernels");
        let backend = || {
            let device = open(&arguments.device)?;
            Ok(CudaBackend::on(device, dtype.into(), Some(cache.clone()))?)
        };
        vectors(arguments, &name, backend)?;
    }
    Ok(())
}

fn folders(arguments: &DigestArguments) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut folders = Vec::new();
    if let Some(models) = &arguments.models {
        for entry in fs::read_dir(models)? {
            let folder = entry?.path();
            if folder.join("config.json").is_file() {
                folders.push(folder);
            }
        }
        folders.sort();
    }
    folders.extend(arguments.model.clone());
    Ok(folders)
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn vectors<B: Backend>(
    arguments: &DigestArguments,
    device: &str,
    backend: impl Fn() -> Result<B, Box<dyn Error>>,
) -> Outcome {
    for folder in folders(arguments)? {
        let model = Model::open(&folder)?;
        let backend = backend()?;
        let pool = Pool::new(backend.source(), MEMORY);
        let encoder = Encoder::load(backend, &model, None, &pool, &|_, _| {})?;
        let name = name(&folder);
        for (shape, batch) in made(&encoder) {
            let rows = encoder.encode(&batch, &pool, PATIENCE)?;
            let digest = of_numbers(&rows);
            results::line(&format!("vector {name} {device} {shape} {digest}"))?;
        }
        let Some(texts) =
            arguments.texts.as_ref().filter(|_| arguments.model == Some(folder.clone()))
        else {
            continue;
        };
        let tokenizer = Tokenizer::of_model(&folder)?;
        let longest = encoder.limits().max_tokens;
        for (index, texts) in tokenize::read(texts)?.chunks(TEXTS).enumerate() {
            let mut batch = Batch::new();
            for text in texts {
                let ids = tokenizer.ids(text, Truncation::End)?;
                batch.push(&ids[..ids.len().min(longest)]);
            }
            let digest = of_numbers(&encoder.encode(&batch, &pool, PATIENCE)?);
            results::line(&format!("vector {name} {device} texts-{index} {digest}"))?;
        }
    }
    Ok(())
}

/// Batches of made tokens.
fn made<B: Backend>(encoder: &Encoder<B>) -> Vec<(String, Batch)> {
    let limits = encoder.limits();
    let vocabulary = u32::try_from(limits.vocabulary).unwrap_or(u32::MAX);
    let mut random = fastrand::Rng::with_seed(7);
    let batch = |shape: Shape| {
        let mut batch = Batch::new();
        let mut left = shape.tokens;
        while left > 0 {
            let length = left.min(shape.longest);
            let ids: Vec<u32> = (0..length).map(|_| random.u32(..vocabulary)).collect();
            batch.push(&ids);
            left -= length;
        }
        (text(shape), batch)
    };
    shapes(limits.max_tokens).filter(|shape| shape.tokens <= COMPUTED).map(batch).collect()
}

fn shapes(max_tokens: usize) -> impl Iterator<Item = Shape> {
    TOKENS.into_iter().flat_map(move |tokens| {
        LONGEST.into_iter().map(move |longest| {
            let longest = longest.min(max_tokens).min(tokens);
            Shape { tokens, sequences: tokens.div_ceil(longest), longest }
        })
    })
}

fn text(shape: Shape) -> String {
    format!("{}x{}x{}", shape.tokens, shape.sequences, shape.longest)
}

fn plans(arguments: &DigestArguments) -> Outcome {
    let dummies = tempfile::tempdir()?;
    let mut folders = folders(arguments)?;
    for (name, size) in [("minilm", Size::Minilm), ("bge-large", Size::BgeLarge)] {
        let folder = dummies.path().join(name);
        fs::create_dir(&folder)?;
        dummy::write_model(&folder, size)?;
        folders.push(folder);
    }
    for folder in folders {
        let (model, name) = (Model::open(&folder)?, name(&folder));
        let of =
            |name: &str| -> Result<(String, &Model), Box<dyn Error>> { Ok((name.into(), &model)) };
        plans_on(CpuLowering::new(2), of(&format!("{name} cpu"))?, arguments.verbose)?;
        for format in [DType::F32, DType::F16, DType::BF16, DType::F8E4M3] {
            let name = format!("{name} cuda-{format:?}").to_lowercase();
            plans_on(CudaLowering::most(format), of(&name)?, arguments.verbose)?;
        }
    }
    Ok(())
}

fn plans_on<L: Lower>(lowering: L, (name, model): (String, &Model), verbose: bool) -> Outcome {
    let programs = Programs::of(lowering, model, None)?;
    let weights = programs.weights();
    let (region, mapped) = (weights.region_bytes(), weights.mapped_bytes());
    results::line(&format!("weights {name} region {region} mapped {mapped}"))?;
    let all: Vec<Shape> = shapes(programs.max_tokens()).collect();
    debug_assert_eq!(all.len(), SHAPES);
    for shape in all {
        let exact = programs.make(RowBound::Bucket(shape));
        for (kind, prepared) in [("exact", &exact), ("bucket", &*programs.get(shape))] {
            let plan = of_plan(prepared.plan(), verbose)?;
            results::line(&format!("plan {name} {} {kind} {plan}", text(shape)))?;
        }
    }
    Ok(())
}

/// Steps, buffers and peak, and a digest of where all lie and how long.
fn of_plan(plan: &Plan, verbose: bool) -> Result<String, std::fmt::Error> {
    let (mut all, mut steps) = (String::new(), 0);
    for buffer in plan.buffers() {
        let (first, last) = (buffer.steps.start(), buffer.steps.end());
        steps = steps.max(last + 1);
        writeln!(all, "  {}+{} in {first}..={last}", buffer.offset, buffer.bytes)?;
    }
    let digest = hex(&Sha256::digest(&all));
    let count = plan.buffers().len();
    let mut line = format!("steps {steps} buffers {count} peak {} {digest}", plan.peak_bytes());
    if verbose {
        write!(line, "\n{}", all.trim_end())?;
    }
    Ok(line)
}

fn of_numbers(numbers: &[f32]) -> String {
    let mut digest = Sha256::new();
    numbers.iter().for_each(|number| digest.update(number.to_bits().to_le_bytes()));
    hex(&digest.finalize())
}

/// The first 64 bits.
fn hex(digest: &[u8]) -> String {
    digest.iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a string takes all
        text
    })
}
