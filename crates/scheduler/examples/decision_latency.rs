//! How long a decision takes, and whether it allocates: 8 unlike devices, 10,000 requests waiting.
//!
//!     cargo run --release -p vecmill-scheduler --example decision_latency
//!
//! A *decision* is a device's question that is answered with "wait", so that nothing but deciding is
//! timed; *a batch* is a decision with the jobs moved into the batch.

#![expect(unsafe_code, reason = "counts allocations, which only an allocator can")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vecmill_scheduler::{
    Batch, Coefficients, DeviceSettings, Job, Next, Scheduler, Settings, Size, Speed, Terms, policy,
};

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

const DEVICES: usize = 8;
const WAITING: u64 = 10_000;
const ROUNDS: usize = 20_000;

/// Eight devices, each slower than the one before.
fn scheduler(policy: &str) -> Result<Scheduler<u64>, Box<dyn Error>> {
    let device = |index: usize| {
        let slower = 1.5f64.powi(i32::try_from(index).unwrap_or(0));
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
        DeviceSettings { batch_tokens: 4096, in_flight: 2, speed }
    };
    let settings = Settings { capacity: usize::MAX, ..Settings::default() };
    Ok(Scheduler::new(settings, policy::by_name(policy)?, (0..DEVICES).map(device)))
}

struct Measured {
    what: &'static str,
    median: Duration,
    worst_of_99: Duration,
    allocations: u64,
}

/// Time and allocations of all but the first tenth of the rounds.
fn measure(what: &'static str, mut round: impl FnMut() -> Duration) -> Measured {
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
    Measured { what, median, worst_of_99, allocations }
}

fn main() -> Result<(), Box<dyn Error>> {
    for policy in policy::names() {
        let mut scheduler = scheduler(policy)?;
        let mut now = Duration::from_secs(1);
        for request in 0..WAITING {
            scheduler.push(now, Terms::default(), [Job::new(20 + request as usize % 60, request)]);
        }
        let mut batch = Batch::new();
        // Every device gets all that it may have: the next question of each is answered with "wait".
        for device in 0..DEVICES {
            while scheduler.next_batch(now, device, || 0, |_| true, &mut batch) == Next::Batch {
                batch.clear();
            }
        }
        let mut device = 0;
        let wait = measure("decision", || {
            device = (device + 1) % DEVICES;
            let begin = Instant::now();
            let next = scheduler.next_batch(now, device, || 0, |_| true, &mut batch);
            let time = begin.elapsed();
            assert!(matches!(next, Next::Wait { .. }), "{next:?}");
            time
        });
        // A batch is done, its requests come again, and the device asks.
        let (mut jobs, mut batches) = (0u32, 0u32);
        let full = measure("batch", || {
            device = (device + 1) % DEVICES;
            now += Duration::from_millis(1);
            let inputs = 70;
            scheduler.ran(now, device, Size::equal(inputs, 50), Duration::from_millis(5));
            for request in 0..inputs {
                scheduler.push(now, Terms::default(), [Job::new(20 + request % 60, 0)]);
            }
            batch.clear();
            let begin = Instant::now();
            let next = scheduler.next_batch(now, device, || 0, |_| true, &mut batch);
            let time = begin.elapsed();
            if next == Next::Batch {
                batches += 1;
                jobs += u32::try_from(batch.jobs.len()).unwrap_or(0);
            }
            time
        });
        for Measured { what, median, worst_of_99, allocations } in [wait, full] {
            writeln!(
                std::io::stdout(),
                "{policy:16} {what:9} {:6} ns, p99 {:6} ns, {allocations} allocations in {ROUNDS}",
                median.as_nanos(),
                worst_of_99.as_nanos(),
            )?;
        }
        let (inputs, _) = scheduler.backlog();
        writeln!(
            std::io::stdout(),
            "{policy:16} {batches} batches of {} inputs, {inputs} wait",
            jobs / batches.max(1)
        )?;
    }
    Ok(())
}
