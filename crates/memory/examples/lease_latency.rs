//! How long a lease and its return take, with 1 to 16 threads:
//! `cargo run --release -p vecmill-memory --example lease_latency`.

use std::io::{self, Write};
use std::sync::Barrier;
use std::time::Instant;

use vecmill_memory::{HostSource, LeaseError, Pool};

const MIB: usize = 1 << 20;
const SAMPLES: usize = 20_000;

/// Pairs between two readings of the clock, which takes about as long as a pair.
const PAIRS: u32 = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = io::stdout().lock();
    writeln!(out, "threads   p50 (ns)   p99 (ns)")?;
    for threads in [1, 2, 4, 16] {
        let mut samples = measure(threads)?;
        samples.sort_unstable();
        let (half, most) = (samples[samples.len() / 2], samples[samples.len() * 99 / 100]);
        writeln!(out, "{threads:7}   {half:8}   {most:8}")?;
    }
    Ok(())
}

/// Nanoseconds per lease and return.
fn measure(threads: usize) -> Result<Vec<u128>, LeaseError> {
    let pool = Pool::new(HostSource, 4 << 30);
    let warm: Result<Vec<_>, _> = (0..threads).map(|_| pool.lease(4 * MIB, &())).collect();
    drop(warm?);
    let start = Barrier::new(threads);
    let work = || {
        start.wait();
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            let before = Instant::now();
            for _ in 0..PAIRS {
                drop(std::hint::black_box(pool.lease(3 * MIB, &())?));
            }
            samples.push(before.elapsed().as_nanos() / u128::from(PAIRS));
        }
        Ok(samples)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().filter_map(|thread| thread.join().ok());
        Ok(results.collect::<Result<Vec<Vec<_>>, LeaseError>>()?.concat())
    })
}
