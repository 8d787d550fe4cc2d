//! How long the scheduler's lock is held for planning, and how long others wait for it.
//!
//!     cargo run --release -p vecmill-engine --example lock_wait [MODEL FOLDER]
//!
//! - Planning: how many tokens fit a slab, found on paper by recording the forward pass again and again.
//!   The least of several times, so that a busy machine doesn't count.
//! - Waiting: while requests that fill batches come and memory is given back and grown again, how long
//!   a question takes that needs the lock and nothing else.

use std::error::Error;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vecmill_backend_cpu::CpuLowering;
use vecmill_encoder::Programs;
use vecmill_engine::ModelRef;
use vecmill_engine::{DeviceSpec, Engine, Request};
use vecmill_model::Model;

const RUN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_micros(50);

fn planning(model: &Model) -> Result<(), Box<dyn Error>> {
    let programs = Programs::of(CpuLowering::new(1), model, None)?;
    for mib in [4, 16, 64] {
        let time = || {
            let begun = Instant::now();
            programs.tokens_within(mib << 20);
            begun.elapsed()
        };
        let least = (0..20).map(|_| time()).min().unwrap_or_default();
        writeln!(std::io::stdout(), "tokens that fit {mib} MiB: found in {least:?}")?;
    }
    Ok(())
}

/// Waits for the lock, sorted, while `engine` is busy.
fn waits(engine: &Engine) -> Vec<Duration> {
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..3 {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let texts = (0..200 + 300 * client).map(|n| format!("text {n} of some length"));
                    let _ = engine.embed_blocking(Request::new(texts));
                }
            });
        }
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(20 * PAUSE);
                engine.trim_memory();
            }
        });
        let (begun, mut waits) = (Instant::now(), Vec::new());
        while begun.elapsed() < RUN {
            let asked = Instant::now();
            engine.policy();
            waits.push(asked.elapsed());
            std::thread::park_timeout(PAUSE);
        }
        over.store(true, Ordering::Relaxed);
        waits.sort_unstable();
        waits
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder().devices(vec![DeviceSpec::CPU]).max_batch_tokens(512);
    let engine = match std::env::args_os().nth(1) {
        Some(folder) => {
            planning(&Model::open(folder.as_ref())?)?;
            engine.model(ModelRef::Folder(folder.into()))
        }
        None => engine,
    };
    let waits = waits(&engine.start()?);
    let at = |parts: usize| waits[(waits.len() - 1) * parts / 10_000];
    writeln!(
        std::io::stdout(),
        "{} waits: median {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
        waits.len(),
        at(5_000),
        at(9_900),
        at(9_990),
        at(10_000),
    )?;
    Ok(())
}
