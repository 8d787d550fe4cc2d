//! Whole models against another implementation's vectors.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use vecmill_encoder::{Backend, Encoder, Lower, Programs, RowBound, Scaling, finish};
use vecmill_encoder::{Batch, Precision, Shape};
use vecmill_memory::Pool;
use vecmill_model::Model;

use super::Failure;

const BUDGET: usize = 1 << 30;

/// `expected.json` beside a model.
#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
}

/// One batch: token ids and what they must give.
#[derive(Deserialize)]
struct Case {
    inputs: Vec<Vec<u32>>,
    /// Where an input's second text begins.
    #[serde(default)]
    second: Vec<usize>,
    /// Vectors.
    #[serde(default)]
    embeddings: Vec<Vec<f64>>,
    /// Scores as they come.
    #[serde(default)]
    logits: Vec<Vec<f64>>,
}

/// How well a backend agrees with stored vectors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Vectors compared.
    pub vectors: usize,
    /// The lowest cosine between a vector and its expected one.
    pub lowest_cosine: f64,
    /// The largest difference of an element, relative to the expected vector's largest; of scores, the
    /// length of all differences, relative to that of all scores.
    pub largest_difference: f64,
}

/// The small models that backends are tested with: below `$VECMILL_TESTDATA`, in the checkout that the
/// test was built from, or below the working folder.
///
/// # Errors
/// When they are not there.
pub fn models() -> Result<Vec<PathBuf>, Failure> {
    let named = std::env::var_os("VECMILL_TESTDATA").map(PathBuf::from);
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    let data = named.or_else(|| checkout.exists().then_some(checkout));
    let folder = data.unwrap_or_else(|| "testdata".into()).join("models");
    let entries = fs::read_dir(&folder).map_err(|error| fixture(&folder, &error))?;
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut models: Vec<_> = folders.filter(|path| path.join("expected.json").exists()).collect();
    models.sort();
    if models.is_empty() {
        return Err(Failure::Fixture(format!("{}: no model is in it", folder.display())));
    }
    Ok(models)
}

/// Encodes every case stored beside the model in `folder`.
///
/// # Errors
/// When the model can't be read or the backend fails; whether the vectors are close enough is for
/// [`Agreement::is_within`] to say.
pub fn model<B: Backend>(backend: B, folder: &Path) -> Result<Agreement, Failure> {
    let (encoder, pool, finish_row) = load(backend, folder)?;
    let path = folder.join("expected.json");
    let text = fs::read_to_string(&path).map_err(|error| fixture(&path, &error))?;
    let expected: Expected = serde_json::from_str(&text).map_err(|error| fixture(&path, &error))?;
    let mut agreement = Agreement { vectors: 0, lowest_cosine: 1.0, largest_difference: 0.0 };
    for case in expected.cases {
        let mut batch = Batch::new();
        for (index, ids) in case.inputs.iter().enumerate() {
            batch.push_pair(ids, case.second.get(index).copied().unwrap_or(ids.len()));
        }
        let rows = encoder
            .encode(&batch, &pool, Duration::ZERO)
            .map_err(|error| fixture(&path, &error))?;
        for (row, expected) in rows.chunks(encoder.limits().dimensions).zip(&case.embeddings) {
            agreement.add(&finish_row(row), expected);
        }
        if !case.logits.is_empty() {
            agreement.add_scores(&rows, &case.logits.concat());
        }
    }
    Ok(agreement)
}

/// Encodes sequences of many lengths, each of two texts, alone and all together, and returns the largest difference
/// between an element of the one and of the other. What a rounding makes of a number grows with the
/// number: where a vector has elements beyond 1, the difference is in parts of its largest.
///
/// # Errors
/// When the model can't be read or the backend fails.
pub fn independence<B: Backend>(backend: B, folder: &Path) -> Result<f64, Failure> {
    let (encoder, pool, finish_row) = load(backend, folder)?;
    let limits = encoder.limits();
    let last = u32::try_from(limits.vocabulary).unwrap_or(u32::MAX).saturating_sub(1);
    let sequence = |index: u32| -> Vec<u32> {
        let length = 1 + (index * 37) % u32::try_from(limits.max_tokens).unwrap_or(1);
        (0..length).map(|place| (place * 31 + index * 17) % last.max(1)).collect()
    };
    let sequences: Vec<Vec<u32>> = (0..64).map(sequence).collect();
    let encode = |batch: Batch| {
        encoder
            .encode(&batch, &pool, Duration::ZERO)
            .map_err(|error| Failure::Fixture(error.to_string()))
    };
    let batch = |sequences: &[Vec<u32>]| {
        let mut batch = Batch::new();
        sequences.iter().for_each(|ids| batch.push_pair(ids, ids.len() / 2));
        batch
    };
    let together = encode(batch(&sequences))?;
    let mut largest = 0.0_f64;
    for (sequence, row) in sequences.iter().zip(together.chunks(limits.dimensions)) {
        let alone = encode(batch(std::slice::from_ref(sequence)))?;
        let (alone, row) = (finish_row(&alone), finish_row(row));
        let scale = alone.iter().fold(1.0_f32, |scale, value| scale.max(value.abs()));
        for (a, b) in alone.iter().zip(row) {
            largest = largest.max(f64::from((a - b).abs() / scale));
        }
    }
    Ok(largest)
}

/// The precision of those of a model's operations that have the least.
///
/// # Errors
/// When the model can't be read.
pub fn precision<L: Lower>(lowering: &L, folder: &Path) -> Result<Precision, Failure> {
    let model = Model::open(folder).map_err(|error| fixture(folder, &error))?;
    let programs = Programs::of(lowering.clone(), &model, None);
    let programs = programs.map_err(|error| fixture(folder, &error))?;
    let rows = RowBound::UpTo(Shape { tokens: 1, sequences: 1, longest: 1 });
    let graph = programs.graph();
    let all = graph.nodes().iter().map(|node| lowering.precision(graph, node, rows));
    let coarser =
        |one: Precision, other: Precision| if other.narrow.is_some() { other } else { one };
    let coarsest = all.reduce(coarser);
    coarsest.ok_or_else(|| Failure::Fixture(format!("{}: nothing to compute", folder.display())))
}

type Loaded<B> = (Encoder<B>, Pool<<B as Backend>::Source>, Box<dyn Fn(&[f32]) -> Vec<f32>>);

fn load<B: Backend>(backend: B, folder: &Path) -> Result<Loaded<B>, Failure> {
    let model = Model::open(folder).map_err(|error| fixture(folder, &error))?;
    let scaling = if model.pipeline.normalize { Scaling::Whole } else { Scaling::AsIs };
    let dimensions = model.dimensions();
    let pool = Pool::new(backend.source(), BUDGET);
    let encoder = Encoder::load(backend, &model, None, &pool, &|_, _| {})
        .map_err(|error| fixture(folder, &error))?;
    Ok((encoder, pool, Box::new(move |row| finish(row, dimensions, scaling))))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn fixture(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::Fixture(format!("{}: {error}", path.display()))
}

impl Agreement {
    /// Whether a model of a few layers on a backend of such `precision` must agree as well as this.
    ///
    /// What passes from step to step is rounded to the storage format some sixty times in three
    /// layers; roundings go either way, so that their errors grow by the root of their number. There
    /// are fewer operands than that, if they are what is rounded. Sums over at most 200 terms lose no
    /// more than two digits of the accumulation's.
    pub fn is_within(&self, precision: Precision) -> bool {
        let rounding = precision.narrow.map_or(precision.storage, |narrow| narrow.operands);
        let allowed = 8.0 * rounding + 160.0 * precision.accumulation;
        let angle = (2.0 * (1.0 - self.lowest_cosine).max(0.0)).sqrt();
        self.vectors > 0 && self.largest_difference <= allowed && angle <= allowed
    }

    /// A text may have one score, whose terms cancel as they please: the scale of what is lost on the way
    /// is that of the scores of many texts.
    fn add_scores(&mut self, found: &[f32], expected: &[f64]) {
        let off = found.iter().zip(expected).map(|(&a, b)| f64::from(a) - b);
        let off: Vec<f64> = off.collect();
        let alike = found.len() == expected.len();
        let lost = if alike { (dot(&off, &off) / dot(expected, expected)).sqrt() } else { 1.0 };
        self.vectors += 1;
        self.largest_difference =
            self.largest_difference.max(if lost.is_nan() { f64::INFINITY } else { lost });
    }

    fn add(&mut self, found: &[f32], expected: &[f64]) {
        let found: Vec<f64> = found.iter().map(|&value| f64::from(value)).collect();
        let norms = (dot(&found, &found) * dot(expected, expected)).sqrt();
        let cosine =
            if found.len() == expected.len() { dot(&found, expected) / norms } else { 0.0 };
        let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        self.vectors += 1;
        // `f64::min` and `max` would pass over a NaN.
        let number = |value: f64, nan: f64| if value.is_nan() { nan } else { value };
        self.lowest_cosine = self.lowest_cosine.min(number(cosine, -1.0));
        self.largest_difference = self.largest_difference.max(number(off / largest, f64::INFINITY));
    }
}
