//! One recording through one manager.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use vecmill_lab::histogram::Histogram;
use vecmill_memory::recording::{Event, Recording, What};

use super::Options;
use super::addresses::{self, Watch};
use super::manager::{Manager, Usage};
use super::report::Report;
use super::series::{Sample, Series};

/// Most ticks between two events. A longer silence is cut short, so that a clock that jumps does
/// not keep a replay busy for years.
const MAX_TICKS: u32 = 100_000;

/// Events between two moves of the progress bar: so many that what is measured does not notice.
const STEP: usize = 4096;

/// Runs a recording through a manager.
///
/// Events are taken in their order. A lease that the manager refuses is counted, and its return is
/// passed over. Refusals in the recording are passed over too: how long such a lease would have lasted
/// isn't known.
pub(crate) fn replay(
    recording: &Recording,
    manager: &mut dyn Manager,
    options: &Options,
) -> Report {
    let start = recording.events.first().map_or(0, |event| event.nanoseconds);
    let mut run = Run::new(recording, manager, options);
    for (index, event) in recording.events.iter().enumerate() {
        let now = event.nanoseconds.saturating_sub(start).max(run.now);
        run.index = index;
        run.advance(now, options.tick);
        match event.what {
            What::Lease { id, stream, bytes } => run.lease(id, stream, bytes),
            What::Return { id } => run.give_back(id),
            _ => {}
        }
        run.sample();
        if (index + 1).is_multiple_of(STEP) {
            options.progress.inc(STEP as u64);
        }
    }
    run.report(recording.events.len())
}

/// A lease that is out.
#[derive(Debug)]
struct Live {
    stream: u32,
    bytes: usize,
    cost: Duration,
}

struct Run<'a> {
    manager: &'a mut dyn Manager,
    live: HashMap<u64, Live>,
    now: u64,
    next_tick: u64,
    requested: usize,
    usage: Usage,
    totals: Totals,
    costs: Histogram,
    calls_before: Vec<(&'static str, u64)>,
    /// Half of the recording's leases, and the calls before the second half began.
    half: u64,
    calls_before_half: u64,
    series: Series,
    watch: Watch,
    window: Range<usize>,
    index: usize,
}

/// What a report counts and averages.
#[derive(Debug, Default)]
struct Totals {
    leases: u64,
    refusals: u64,
    refusals_with_room: u64,
    warm: u64,
    peak_held: usize,
    peak_requested: usize,
    held: Mean,
    external: Mean,
    max_external: f64,
    internal: Mean,
    peak_internal: f64,
}

/// A mean over time.
#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    time: f64,
}

impl Mean {
    fn add(&mut self, value: f64, time: f64) {
        self.sum += value * time;
        self.time += time;
    }

    fn of_time_or(&self, otherwise: f64) -> f64 {
        if self.time > 0.0 { self.sum / self.time } else { otherwise }
    }
}

impl<'a> Run<'a> {
    fn new(recording: &Recording, manager: &'a mut dyn Manager, options: &Options) -> Self {
        let is_lease = |event: &&Event| matches!(event.what, What::Lease { .. });
        let calls_before = manager.driver_calls();
        Self {
            half: recording.events.iter().filter(is_lease).count() as u64 / 2,
            calls_before_half: total(&calls_before),
            calls_before,
            usage: manager.usage(),
            manager,
            live: HashMap::new(),
            now: 0,
            next_tick: 0,
            requested: 0,
            totals: Totals { peak_internal: 1.0, ..Totals::default() },
            costs: Histogram::default(),
            series: Series::new(recording.nanoseconds(), options.points),
            watch: Watch::default(),
            window: addresses::window(recording, options.map_leases),
            index: 0,
        }
    }

    /// Lets time pass until `now`.
    fn advance(&mut self, now: u64, tick: Duration) {
        let step = u64::try_from(tick.as_nanos()).unwrap_or(u64::MAX).max(1);
        let mut ticks = 0;
        while self.next_tick <= now {
            if ticks == MAX_TICKS {
                self.next_tick = now;
            }
            self.pass(self.next_tick);
            self.manager.tick(self.now);
            self.sample();
            if ticks == MAX_TICKS || self.next_tick == u64::MAX {
                self.next_tick = now.saturating_add(step);
                break;
            }
            self.next_tick = self.next_tick.saturating_add(step);
            ticks += 1;
        }
        self.pass(now);
    }

    /// Counts what was true until `now` into the means.
    fn pass(&mut self, now: u64) {
        let time = now.saturating_sub(self.now) as f64;
        let Usage { held_bytes, leased_bytes, .. } = self.usage;
        self.totals.held.add(held_bytes as f64, time);
        self.totals.external.add(self.usage.external_fragmentation(), time);
        if self.requested > 0 {
            self.totals.internal.add(leased_bytes as f64 / self.requested as f64, time);
        }
        self.now = now;
    }

    fn lease(&mut self, id: u64, stream: u32, bytes: usize) {
        if self.live.contains_key(&id) {
            return; // not from a recording that was read: see `Recording::read`
        }
        let calls = total(&self.manager.driver_calls());
        if self.totals.leases + self.totals.refusals == self.half {
            self.calls_before_half = calls;
        }
        let begun = Instant::now();
        let given = self.manager.lease(id, stream, bytes, self.now);
        let cost = begun.elapsed();
        if given.is_err() {
            self.totals.refusals += 1;
            if self.usage.free_bytes >= bytes {
                self.totals.refusals_with_room += 1;
            }
            return;
        }
        self.totals.leases += 1;
        if total(&self.manager.driver_calls()) == calls {
            self.totals.warm += 1;
        }
        self.requested = self.requested.saturating_add(bytes);
        self.live.insert(id, Live { stream, bytes, cost });
    }

    fn give_back(&mut self, id: u64) {
        if let Some(Live { bytes, cost, .. }) = self.live.remove(&id) {
            let begun = Instant::now();
            self.manager.give_back(id, self.now);
            self.costs.add(cost + begun.elapsed());
            self.requested = self.requested.saturating_sub(bytes);
        }
    }

    /// Looks at the manager after something has happened.
    fn sample(&mut self) {
        self.usage = self.manager.usage();
        let Usage { held_bytes, leased_bytes, .. } = self.usage;
        let totals = &mut self.totals;
        totals.peak_held = totals.peak_held.max(held_bytes);
        totals.max_external = totals.max_external.max(self.usage.external_fragmentation());
        if self.requested > totals.peak_requested {
            totals.peak_requested = self.requested;
            totals.peak_internal = leased_bytes as f64 / self.requested as f64;
        }
        let sample = Sample { requested_bytes: self.requested, leased_bytes, held_bytes };
        self.series.record(self.now, sample);
        if self.window.contains(&self.index) {
            let live = |id| self.live.get(&id).map(|live| (live.stream, live.bytes));
            self.watch.see(self.now, self.manager.blocks(), live);
        }
    }

    fn report(self, events: usize) -> Report {
        let Self { totals, usage, .. } = self;
        let calls = self.manager.driver_calls();
        let driver_calls_in_second_half = total(&calls).saturating_sub(self.calls_before_half);
        let before: HashMap<_, _> = self.calls_before.into_iter().collect();
        let made = |(kind, calls): (_, u64)| {
            (kind, calls.saturating_sub(before.get(kind).copied().unwrap_or(0)))
        };
        Report {
            name: self.manager.name().to_owned(),
            leases: totals.leases,
            refusals: totals.refusals,
            refusals_with_room: totals.refusals_with_room,
            peak_held_bytes: totals.peak_held,
            peak_requested_bytes: totals.peak_requested,
            mean_held_bytes: totals.held.of_time_or(usage.held_bytes as f64),
            end_held_bytes: usage.held_bytes,
            mean_external_fragmentation: totals.external.of_time_or(totals.max_external),
            max_external_fragmentation: totals.max_external,
            peak_internal_fragmentation: totals.peak_internal,
            mean_internal_fragmentation: totals.internal.of_time_or(totals.peak_internal),
            driver_calls: calls.into_iter().map(made).collect(),
            driver_calls_in_second_half,
            warm_leases: totals.warm,
            median_time: self.costs.percentile(50),
            p99_time: self.costs.percentile(99),
            series: self.series,
            map: self.watch.end(self.window.len() >= events),
        }
    }
}

fn total(calls: &[(&'static str, u64)]) -> u64 {
    calls.iter().map(|(_, calls)| calls).sum()
}
