//! How long a decision takes, and whether it allocates: 8 and 256 unlike devices, 10,000
//! requests waiting.
//!
//!     cargo run --release -p vecmill-scheduler --example decision_latency
//!
//! With batches of one input nearly all of the time is the decision; with larger ones it is moving
//! the jobs.

#![expect(unsafe_code, reason = "counts allocations, which only an allocator can")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vecmill_scheduler::{
    ClassId, Coefficients, DeviceSettings, Job, JobBatch, JobTerms, Next, Scheduler, Settings,
    Size, Speed, policy::PolicyName,
};

const CLASS: ClassId = ClassId::FIRST;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: it hands everything on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: what holds for this call holds for that one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: what holds for this call holds for that one.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const DEVICES: [usize; 2] = [8, 256];
const WAITING: usize = 10_000;
const ROUNDS: usize = 20_000;

/// Devices, each slower than the one before; of many, eight kinds.
fn scheduler(
    policy: PolicyName,
    devices: usize,
    batch_tokens: usize,
) -> Result<Scheduler<usize>, Box<dyn Error>> {
    let device = |index: usize| {
        let slower = 1.5f64.powi(i32::try_from(index % 8).unwrap_or(0));
        let model = Coefficients {
            fixed: 1e-3 * slower,
            per_token: 1e-6 * slower,
            per_square: 1e-9 * slower,
        };
        let mut speed = Speed::kept(model);
        for round in 1..20 {
            let size = Size::equal(round, 40);
            speed.observe(size, Duration::from_secs_f64(model.seconds(size)));
        }
        DeviceSettings { batch_tokens, in_flight: 2, speed }
    };
    let settings = Settings { capacity: usize::MAX, ..Settings::default() };
    Ok(Scheduler::new(settings, policy.policy(), (0..devices).map(device)))
}

struct Measured {
    median: Duration,
    worst_of_99: Duration,
    allocations: u64,
}

/// Time and allocations of all but the first tenth of the rounds.
fn measure(mut round: impl FnMut() -> Duration) -> Measured {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS / 10 {
        round();
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..ROUNDS {
        times.push(round());
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    times.sort_unstable();
    let (median, worst_of_99) = (times[ROUNDS / 2], times[ROUNDS / 100 * 99]);
    Measured { median, worst_of_99, allocations }
}

/// Devices that run batches of at most `batch_tokens`, one after the other, while requests come as fast
/// as they are done.
fn time(
    policy: PolicyName,
    devices: usize,
    batch_tokens: usize,
) -> Result<(f64, Measured), Box<dyn Error>> {
    let mut scheduler = scheduler(policy, devices, batch_tokens)?;
    let mut now = Duration::from_secs(1);
    let mut request = 0;
    let mut push = |scheduler: &mut Scheduler<usize>, now: Duration| {
        scheduler.push(now, CLASS, JobTerms::default(), [Job::new(20 + request % 60, request)]);
        request += 1;
    };
    for _ in 0..WAITING {
        push(&mut scheduler, now);
    }
    let mut batch = JobBatch::new();
    let mut running: Vec<Vec<Size>> = (0..devices).map(|_| Vec::with_capacity(2)).collect();
    let (mut device, mut jobs, mut batches, mut waits) = (0, 0, 0, 0);
    let measured = measure(|| {
        loop {
            device = (device + 1) % devices;
            now += Duration::from_nanos(1_600_000 / devices as u64);
            // One whose next batch is not there finishes the one that it has when all others wait too.
            if running[device].len() == 2 || waits > devices && !running[device].is_empty() {
                let size = running[device].remove(0);
                scheduler.ran(now, device, CLASS, size, Duration::from_millis(5));
                for _ in 0..size.inputs {
                    push(&mut scheduler, now);
                }
            }
            batch.clear();
            let begin = Instant::now();
            let next = scheduler.next_batch(now, device, None, |_| true, &mut batch);
            let time = begin.elapsed();
            if next == Next::Batch {
                running[device].push(batch.size());
                (batches, jobs, waits) = (batches + 1, jobs + batch.jobs.len(), 0);
                return time;
            }
            waits += 1;
        }
    });
    Ok((jobs as f64 / f64::from(batches), measured))
}

fn main() -> Result<(), Box<dyn Error>> {
    for (devices, policy) in DEVICES.into_iter().flat_map(|d| PolicyName::ALL.map(move |p| (d, p)))
    {
        // One input is all that fits, then many.
        for batch_tokens in [1, 4096] {
            let (inputs, Measured { median, worst_of_99, allocations }) =
                time(policy, devices, batch_tokens)?;
            writeln!(
                std::io::stdout(),
                "{devices:3} devices, {policy:16} batch of {inputs:4.1}: {:5} ns, p99 {:5} ns, {allocations} allocations \
                 in {ROUNDS}",
                median.as_nanos(),
                worst_of_99.as_nanos(),
            )?;
        }
    }
    Ok(())
}
