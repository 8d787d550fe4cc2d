//! A fast device and a slow one share work: `cargo run -p vecmill-scheduler --example two_devices`.
//!
//! Nothing is known of their speeds at first. The clock jumps from event to event; a request of four inputs
//! comes every three milliseconds, which neither device could do alone.

use std::io::{self, Write};
use std::time::Duration;

use vecmill_scheduler::policy::PolicyName;
use vecmill_scheduler::{
    ClassId, Coefficients, DeviceSettings, Job, JobBatch, JobTerms, Next, Refused, Scheduler,
    Settings, Size, Speed,
};

const CLASS: ClassId = ClassId::FIRST;

/// What a batch really takes, of which the scheduler is told only afterwards.
const TRUTH: [Coefficients; 2] = [
    Coefficients { fixed: 0.002, per_token: 8e-6, per_square: 0.0 },
    Coefficients { fixed: 0.004, per_token: 32e-6, per_square: 0.0 },
];

const STEP: Duration = Duration::from_micros(100);
const EVERY: u32 = 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = |_| DeviceSettings { batch_tokens: 2048, in_flight: 1, speed: Speed::new() };
    let policy = PolicyName::EarliestFinish.policy();
    let mut scheduler = Scheduler::new(Settings::default(), policy, TRUTH.map(device));
    let mut running: [Option<(Duration, Size, Duration)>; 2] = [None; 2];
    let mut batch = JobBatch::new();
    let mut out = io::stdout().lock();
    for step in 0..20_000u32 {
        let now = STEP * step;
        if step % EVERY == 0 {
            request(&mut scheduler, now, step as usize)?;
        }
        for (device, running) in running.iter_mut().enumerate() {
            if let Some((_, size, took)) = running.take_if(|(end, ..)| *end <= now) {
                scheduler.ran(now, device, CLASS, size, took);
                scheduler.release(size.inputs);
            }
            batch.clear();
            if running.is_none()
                && scheduler.next_batch(now, device, None, |()| true, &mut batch) == Next::Batch
            {
                let took = Duration::from_secs_f64(TRUTH[device].seconds(batch.size()));
                *running = Some((now + took, batch.size(), took));
            }
        }
        if [300, 1_000, 19_999].contains(&step) {
            report(&mut scheduler, now, &mut out)?;
        }
    }
    Ok(())
}

fn request(scheduler: &mut Scheduler<()>, now: Duration, seed: usize) -> Result<(), Refused> {
    scheduler.admit(now, CLASS, 4, None)?;
    let jobs = [7, 11, 13, 17].map(|prime| Job::new(5 + seed * prime % 150, ()));
    scheduler.push(now, CLASS, JobTerms::default(), jobs);
    Ok(())
}

fn report(scheduler: &mut Scheduler<()>, now: Duration, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "after {:.1} s, {} inputs wait:", now.as_secs_f64(), scheduler.backlog().0)?;
    for (device, now) in ["fast", "slow"].iter().zip(scheduler.statistics(now, CLASS)) {
        let known = now.speed.map_or_else(
            || "not known yet".to_owned(),
            |speed| {
                format!("{:.1} ms + {:.1} µs a token", speed.fixed * 1e3, speed.per_token * 1e6)
            },
        );
        writeln!(
            out,
            "  {device}: {} batches of {:.0} tokens; its part of all speed {:.0} %; a batch takes {known}",
            now.batches,
            now.tokens as f64 / now.batches.max(1) as f64,
            now.weight * 100.0,
        )?;
    }
    Ok(())
}
