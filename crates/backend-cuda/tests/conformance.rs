//! A GPU against the suite that every backend must pass, in each number format.
#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]
#![expect(clippy::print_stdout, reason = "how close it was is worth seeing")]

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vecmill_backend_cuda::{CudaBackend, CudaLowering, Gpu};
use vecmill_encoder::{Backend, Batch, Encoder};
use vecmill_memory::{Pool, Source};
use vecmill_model::{DType, Model};
use vecmill_testing::conformance;

/// The first device, used by one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn backend(format: DType) -> CudaBackend {
    on(Gpu::open(0).unwrap(), format)
}

fn on(device: Gpu, format: DType) -> CudaBackend {
    let cache = std::env::temp_dir().join("vecmill-test-kernels");
    CudaBackend::on(device, format, Some(cache)).unwrap()
}

/// The suite in each number format, so that the name of a test says in which one it failed.
macro_rules! suite {
    ($($name:ident: $format:expr),+) => {$(
        mod $name {
            use super::*;

            #[test]
            #[ignore = "needs a CUDA device"]
            fn every_operation_is_within_rounding_of_the_reference() {
                operations($format);
            }

            #[test]
            #[ignore = "needs a CUDA device"]
            fn every_architecture_agrees_with_transformers() {
                architectures($format);
            }

            #[test]
            #[ignore = "needs a CUDA device"]
            fn a_text_has_the_same_vector_alone_and_in_a_batch_up_to_rounding() {
                independence($format);
            }
        }
    )+};
}

suite!(
    in_float16: DType::F16,
    in_bfloat16: DType::BF16,
    in_float32: DType::F32,
    in_fp8: DType::F8E4M3
);

fn operations(format: DType) {
    let _guard = alone();
    let checked = conformance::operations(&backend(format));
    assert!(checked.is_ok(), "{}", checked.unwrap_err());
}

/// Models with operations that GPUs have no kernel for yet.
const NOT_YET: [&str; 1] = ["jina-v2-code"];

fn models() -> impl Iterator<Item = PathBuf> {
    let models = conformance::models().unwrap().into_iter();
    models.filter(|model| !NOT_YET.iter().any(|name| model.ends_with(name)))
}

#[test]
#[ignore = "needs a CUDA device"]
fn what_has_no_kernel_yet_is_refused_by_name() {
    let _guard = alone();
    for name in NOT_YET {
        let models = conformance::models().unwrap();
        let model = models.iter().find(|model| model.ends_with(name)).unwrap();
        let refusal = conformance::model(backend(DType::F16), model).unwrap_err().to_string();
        assert!(refusal.contains("run this model on the CPU"), "{refusal}");
    }
}

fn architectures(format: DType) {
    let _guard = alone();
    let mut off = Vec::new();
    for model in models() {
        let backend = backend(format);
        let precision = conformance::precision(backend.lowering(), &model).unwrap();
        let agreement = conformance::model(backend, &model).unwrap();
        println!("{} {format:?} {agreement:?}", model.display());
        if !agreement.is_within(precision) {
            off.push((model, agreement));
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}

/// Batches of other sizes may take other algorithms, whose sums are in another order.
fn independence(format: DType) {
    let _guard = alone();
    for model in models() {
        let backend = backend(format);
        let precision = conformance::precision(backend.lowering(), &model).unwrap();
        // A rounding that differs may lead an operand to the next number of its format.
        let rounding = precision.narrow.map_or(precision.storage, |narrow| narrow.operands);
        let allowed = 8.0 * rounding + 160.0 * precision.accumulation;
        let difference = conformance::independence(backend, &model).unwrap();
        println!("{} {format:?} {difference:e}", model.display());
        assert!(difference <= allowed, "{} {format:?}: {difference:e}", model.display());
    }
}

#[test]
fn programs_of_buckets_hold_for_fewer_rows() {
    for format in [DType::F32, DType::F16, DType::BF16, DType::F8E4M3] {
        conformance::lowering(&CudaLowering::most(format)).unwrap();
    }
}

/// A small model.
fn model() -> Model {
    Model::open(&conformance::models().unwrap()[0]).unwrap()
}

#[test]
#[ignore = "needs a CUDA device"]
fn so_is_it_on_a_part_of_a_device_and_by_whichever_way_is_faster() {
    let _guard = alone();
    let part = on(Gpu::open_part(0, 16).unwrap(), DType::F16);
    let checked = conformance::operations(&part);
    assert!(checked.is_ok(), "{}", checked.unwrap_err());
    let tuned = backend(DType::F16);
    tuned.tune(true);
    let checked = conformance::operations(&tuned);
    assert!(checked.is_ok(), "while it is tuned: {}", checked.unwrap_err());
    tuned.tune(false);
    let checked = conformance::operations(&tuned);
    assert!(checked.is_ok(), "{}", checked.unwrap_err());
}

#[test]
#[ignore = "needs a CUDA device"]
fn practice_leaves_nothing_to_prepare() {
    let _guard = alone();
    let model = model();
    let cache = tempfile::tempdir().unwrap();
    let backend = CudaBackend::open(0, DType::F16, Some(cache.path().to_owned())).unwrap();
    let pool = Pool::new(backend.source(), 1 << 30);
    let encoder = Encoder::load(backend, &model, None, &pool, &|_, _| {}).unwrap();
    let practised = encoder.warm_up(&pool, 4096, Duration::from_secs(60), &|_, _| {}).unwrap();
    println!("{practised:?}");
    assert!(practised.iter().any(|batch| batch.shape.tokens == 4096));
    let kernels = || fs::read_dir(cache.path()).unwrap().count();
    let compiled = kernels();
    assert!(compiled > 0);
    for lengths in [&[3][..], &[30; 4], &[20; 200], &[5, 17, 33]] {
        let batch: Batch = lengths.iter().map(|&length| vec![1; length]).collect();
        encoder.encode(&batch, &pool, Duration::ZERO).unwrap();
    }
    assert_eq!(kernels(), compiled, "nothing is left to compile");
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_replayed_batch_gives_the_same_bits_and_takes_no_memory() {
    let _guard = alone();
    let model = model();
    let backend = backend(DType::F16);
    let pool = Pool::new(backend.source(), 1 << 30);
    let encoder = Encoder::load(backend, &model, None, &pool, &|_, _| {}).unwrap();
    let sequences = [vec![1_u32, 2, 3, 4, 5], vec![6, 7], vec![8; 17]];
    let small: Batch = sequences.iter().collect();
    let other: Batch = sequences.iter().rev().collect();
    let run = |batch: &Batch| encoder.encode(batch, &pool, Duration::ZERO).unwrap();
    let first = run(&small);
    let calls = pool.source().calls();
    for _ in 0..5 {
        assert_eq!(run(&small), first, "by steps, captured and replayed");
        let turned = run(&other);
        let rows = turned.chunks(encoder.limits().dimensions).rev().flatten();
        assert!(rows.eq(&first), "a graph takes its inputs anew");
    }
    assert_eq!(pool.source().calls(), calls);
    assert_eq!(pool.statistics().overruns, 0);
}
