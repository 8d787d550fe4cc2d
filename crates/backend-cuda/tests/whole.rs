//! Whole models of real sizes on a device: that they take the memory that was planned, and that
//! practice leaves nothing to be made ready.
#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]
#![expect(clippy::print_stdout, reason = "the figures are worth keeping")]

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use support::{MODELS, Sizes, write_model};
use vecmill_backend_cuda::{CudaBackend, CudaLowering, Gpu, Sensors, devices};
use vecmill_encoder::{Ask, Backend, Batch, Encoder, Programs, fit};
use vecmill_memory::Pool;
use vecmill_model::{DType, Model, Pooling};

const MIB: usize = 1 << 20;
const FORMATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

/// What the driver may take for itself while memory is mapped: page tables.
const DRIVERS_OWN: usize = 4 * MIB;

/// Tokens of the largest batch, as the default has it.
const MOST: usize = 16_384;

/// The first device, used by one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn model(sizes: Sizes) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), sizes);
    let model = Model::open(folder.path()).unwrap();
    (folder, model)
}

fn backend(format: DType) -> Option<CudaBackend> {
    let cache = std::env::temp_dir().join("vecmill-test-kernels");
    let opened = CudaBackend::on(Gpu::open(0).unwrap(), format, Some(cache));
    // Not every device has every format.
    opened.inspect_err(|reason| println!("{format:?} is left out: {reason}")).ok()
}

/// By the sensors, which tell of it without a context.
fn free() -> Option<usize> {
    let gpu = devices().unwrap().swap_remove(0);
    Some(Sensors::open(&gpu).ok()?.read().memory?.free_bytes)
}

#[test]
#[ignore = "needs a CUDA device"]
fn weights_and_batches_take_what_was_planned_and_never_more_than_the_budget() {
    let _guard = alone();
    println!("All in MiB. Driver: what it has beside the pool once all is ready.\n");
    println!("| model | format | planned | reserved | taken | budget | held | driver |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    // Before there is a context, which stays.
    let at_first = free();
    for sizes in MODELS {
        let (_folder, model) = model(sizes);
        for format in FORMATS {
            let Some(backend) = backend(format) else { continue };
            measure(sizes, &model, backend, format, at_first);
        }
    }
}

fn measure(
    sizes: Sizes,
    model: &Model,
    backend: CudaBackend,
    format: DType,
    at_first: Option<usize>,
) {
    let device = backend.device().clone();
    let lowering = *backend.lowering();
    let plan = |lowering| {
        let programs = Programs::of(lowering, model, Some(Pooling::Cls)).unwrap();
        programs.weights().reserved_bytes()
    };
    let planned = plan(lowering);
    assert!(planned <= plan(CudaLowering::most(format)), "a plan without a device is no less");
    // Room for the weights, and for batches of half the usual size.
    let ask = Ask {
        budget_bytes: planned + 512 * MIB,
        in_flight: 2,
        longest_input: 512,
        max_batch_tokens: MOST / 2,
    };
    let fit = fit(model, Some(Pooling::Cls), lowering, ask).unwrap();
    assert_eq!(fit.weights_bytes, planned);
    let pool = Pool::new(backend.source(), ask.budget_bytes);
    let before = device.memory_info().unwrap().free;
    let encoder = Encoder::load(backend, model, Some(Pooling::Cls), &pool, &|_, _| {}).unwrap();
    let taken = before.saturating_sub(device.memory_info().unwrap().free);
    let reserved = pool.statistics().reserved_bytes;
    assert_eq!(reserved, planned, "{} {format:?}", sizes.name);
    assert!(
        (reserved..=reserved + DRIVERS_OWN).contains(&taken),
        "{} {format:?}: {taken} bytes taken, {reserved} reserved",
        sizes.name
    );
    let encoder = encoder.with_largest(fit.largest);
    let limit = Duration::from_secs(60);
    encoder.warm_up(&pool, fit.largest.tokens, limit, &|_, _| {}).unwrap();
    let now = pool.statistics();
    let held = now.reserved_bytes + now.peak_held_bytes;
    assert!(held <= ask.budget_bytes, "{held} of {}", ask.budget_bytes);
    let free_now = free();
    let driver = at_first.zip(free_now).map(|(first, now_free)| {
        first.saturating_sub(now_free + now.reserved_bytes + now.held_bytes)
    });
    let mib = |bytes: usize| bytes.div_ceil(MIB);
    println!(
        "| {} | {format:?} | {} | {} | {} | {} | {} | {} |",
        sizes.name,
        mib(planned),
        mib(reserved),
        mib(taken),
        mib(ask.budget_bytes),
        mib(held),
        driver.map_or("?".to_owned(), |bytes| mib(bytes).to_string())
    );
}

#[test]
#[ignore = "needs a CUDA device"]
fn practice_takes_every_way_that_a_batch_can_take() {
    let _guard = alone();
    for (sizes, pooling) in MODELS.into_iter().zip([Pooling::Mean, Pooling::Cls, Pooling::Cls]) {
        for format in [DType::F16, DType::F8E4M3, DType::F32] {
            let (_folder, model) = model(sizes);
            let Some(backend) = backend(format) else { continue };
            let pool = Pool::new(backend.source(), 16 << 30);
            let encoder = Encoder::load(backend, &model, Some(pooling), &pool, &|_, _| {}).unwrap();
            let begun = Instant::now();
            let limit = Duration::from_secs(300);
            encoder.warm_up(&pool, MOST, limit, &|_, _| {}).unwrap();
            let practised = encoder.backend().ways_taken();
            println!("{} {format:?}: {practised} ways, {:?}", sizes.name, begun.elapsed());
            let mut random = fastrand::Rng::with_seed(7);
            for number in 0..300 {
                let batch = any_batch(&mut random);
                encoder.encode(&batch, &pool, Duration::ZERO).unwrap();
                let taken = encoder.backend().ways_taken();
                let shape = batch.shape();
                assert_eq!(taken, practised, "{} {format:?} batch {number}: {shape:?}", sizes.name);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn batches_start_while_results_that_nobody_has_collected_fill_the_staging_ring() {
    let _guard = alone();
    let (_folder, model) = model(MODELS[2]);
    let backend = backend(DType::F16).unwrap();
    let pool = Pool::new(backend.source(), 16 << 30);
    let encoder = Encoder::load(backend, &model, None, &pool, &|_, _| {}).unwrap();
    // 32 MiB of results, as much as the ring has.
    let many: Batch = (0..MOST).map(|_| [1_u32]).collect();
    let few: Batch = [[1_u32, 2, 3]].into_iter().collect();
    let start = |batch| encoder.start(batch, &pool, Duration::from_secs(1)).unwrap();
    let started = [start(&many), start(&few), start(&many), start(&few)];
    let lengths = started.map(|batch| encoder.collect(batch).unwrap().len());
    let dimensions = encoder.limits().dimensions;
    assert_eq!(lengths, [MOST, 1, MOST, 1].map(|rows| rows * dimensions));
}

/// Texts of all lengths, of similar ones, or of one; few or many.
fn any_batch(random: &mut fastrand::Rng) -> Batch {
    let most = 1 << random.usize(4..=14);
    let most = random.usize(most / 2..=most);
    let longest = [2, 20, 65, 96, 130, 512][random.usize(..6)];
    let shortest = if random.bool() { 1 } else { longest };
    let ids = [0; 512];
    let (mut batch, mut left) = (Batch::new(), most);
    while left > 0 {
        let length = random.usize(shortest..=longest).min(left);
        batch.push(&ids[..length]);
        left -= length;
    }
    batch
}
