//! Times `vecmill_memory::Heap`: what an allocation and a free take beside 16 to 65,536 holes.
//!
//! `cargo run --release --example heap_latency -p vecmill-memory -- --json heap.json` prints a
//! Markdown table of nanoseconds per pair of an allocation and a free, and writes the same as JSON.
//!
//! A heap with N holes: 2 N blocks of 1 to 64 KiB, of which every other is freed, in random order.
//! Then two loads, each in groups of 16 pairs per reading of the clock, with sizes and choices drawn
//! before the clock starts:
//!
//! - *pairs*: 16 allocations of 1 to 64 KiB, then their frees in random order. The number of holes
//!   stays N.
//! - *churn*: a random block of all live ones is freed and one of another size allocated, 16 times.
//!   Holes merge and split as they would in a long run, and every block touched is a cold one.
//!
//! A load runs for a while before it's recorded, and the clock's own cost is subtracted. Each figure
//! is of readings divided by 16, so a p99 or maximum is a group's mean, and the latter includes
//! whatever interrupted the process. Shown is the round with the lowest p50 of several, with the
//! highest maximum of all.

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Instant;

use vecmill_memory::{Heap, Span};

const HOLES: [usize; 4] = [16, 256, 4096, 65_536];
const PAIRS_PER_READING: usize = 16;
const WARM_UP_READINGS: usize = 20_000;
const READINGS: usize = 50_000;
const ROUNDS: usize = 5;

/// splitmix64 (Steele, Lea & Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % limit
    }

    fn bytes(&mut self) -> usize {
        1024 + self.below(63 * 1024 + 1)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Nanoseconds per pair.
#[derive(Clone, Copy)]
struct Figures {
    p50: f64,
    p99: f64,
    max: f64,
}

struct Row {
    load: &'static str,
    holes: usize,
    holes_after: usize,
    figures: Figures,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--json", path] => Some(path),
        _ => return Err("usage: heap_latency [--json FILE]".into()),
    };
    let mut rows = Vec::new();
    for load in ["pairs", "churn"] {
        for holes in HOLES {
            rows.push(measure(load, holes)?);
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "| load | holes | holes after | p50 ns | p99 ns | max ns | p50 / 16 holes |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for row in &rows {
        let Row { load, holes, holes_after, figures: Figures { p50, p99, max } } = row;
        let ratio = p50 / base(&rows, load);
        writeln!(
            out,
            "| {load} | {holes} | {holes_after} | {p50:.1} | {p99:.1} | {max:.0} | {ratio:.2} |"
        )?;
    }
    if let Some(path) = path {
        std::fs::write(path, json(&rows)?)?;
    }
    Ok(())
}

/// The load's p50 at the fewest holes.
fn base(rows: &[Row], load: &str) -> f64 {
    rows.iter().find(|row| row.load == load).map_or(f64::NAN, |row| row.figures.p50)
}

fn measure(load: &'static str, holes: usize) -> Result<Row, Box<dyn Error>> {
    let mut best = Figures { p50: f64::INFINITY, p99: 0.0, max: 0.0 };
    let mut max = 0.0_f64;
    let mut holes_after = 0;
    for round in 0..ROUNDS {
        let mut random = Random(round as u64);
        let (mut heap, mut live) = fragmented(holes, &mut random)?;
        let mut reading = |random: &mut Random| match load {
            "pairs" => pairs(&mut heap, random),
            _ => churn(&mut heap, &mut live, random),
        };
        for _ in 0..WARM_UP_READINGS {
            reading(&mut random)?;
        }
        let clock = clock_cost();
        let mut times = Vec::with_capacity(READINGS);
        for _ in 0..READINGS {
            times.push((reading(&mut random)? - clock).max(0.0) / PAIRS_PER_READING as f64);
        }
        holes_after = heap.statistics().holes;
        let figures = figures(&mut times);
        max = max.max(figures.max);
        if figures.p50 < best.p50 {
            best = figures;
        }
    }
    Ok(Row { load, holes, holes_after, figures: Figures { max, ..best } })
}

/// A heap with `holes` holes between its live blocks and one at its end.
fn fragmented(holes: usize, random: &mut Random) -> Result<(Heap, Vec<Span>), Box<dyn Error>> {
    let mut heap = Heap::new();
    heap.extend(2 * holes * 64 * 1024 + (4 << 20))?;
    let mut live = Vec::new();
    let mut freed = Vec::new();
    for index in 0..2 * holes {
        let span = heap.allocate(random.bytes()).ok_or("the heap is too small")?;
        if index % 2 == 0 { freed.push(span) } else { live.push(span) }
    }
    random.shuffle(&mut freed);
    for span in freed {
        heap.free(span)?;
    }
    Ok((heap, live))
}

/// Nanoseconds for one group of allocations, then frees in random order.
fn pairs(heap: &mut Heap, random: &mut Random) -> Result<f64, Box<dyn Error>> {
    let sizes: [usize; PAIRS_PER_READING] = std::array::from_fn(|_| random.bytes());
    let mut order: [usize; PAIRS_PER_READING] = std::array::from_fn(|index| index);
    random.shuffle(&mut order);
    let start = Instant::now();
    let spans = sizes.map(|bytes| heap.allocate(black_box(bytes)));
    for index in order {
        heap.free(spans[index].ok_or("the heap is full")?)?;
    }
    Ok(start.elapsed().as_nanos() as f64)
}

/// Nanoseconds for one group of frees of random blocks, each followed by an allocation.
fn churn(heap: &mut Heap, live: &mut [Span], random: &mut Random) -> Result<f64, Box<dyn Error>> {
    let steps: [(usize, usize); PAIRS_PER_READING] =
        std::array::from_fn(|_| (random.below(live.len()), random.bytes()));
    let start = Instant::now();
    for (pick, bytes) in steps {
        heap.free(live[pick])?;
        live[pick] = heap.allocate(black_box(bytes)).ok_or("the heap is full")?;
    }
    Ok(start.elapsed().as_nanos() as f64)
}

/// What two readings of the clock take, in nanoseconds.
fn clock_cost() -> f64 {
    let mut times = [(); 1001].map(|()| {
        let start = Instant::now();
        start.elapsed().as_nanos() as f64
    });
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn figures(times: &mut [f64]) -> Figures {
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    Figures { p50: at(50), p99: at(99), max: at(100) }
}

fn json(rows: &[Row]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "{{\n \"unit\": \"nanoseconds per allocation and free\",")?;
    writeln!(text, " \"pairs_per_reading\": {PAIRS_PER_READING},")?;
    writeln!(text, " \"readings\": {READINGS},\n \"rounds\": {ROUNDS},\n \"rows\": [")?;
    for (index, row) in rows.iter().enumerate() {
        let Row { load, holes, holes_after, figures: Figures { p50, p99, max } } = row;
        let ratio = p50 / base(rows, load);
        write!(text, "  {{\"load\": \"{load}\", \"holes\": {holes}, ")?;
        write!(text, "\"holes_after\": {holes_after}, \"p50\": {p50:.1}, \"p99\": {p99:.1}, ")?;
        write!(text, "\"max\": {max:.1}, \"p50_to_fewest_holes\": {ratio:.3}}}")?;
        writeln!(text, "{}", if index + 1 < rows.len() { "," } else { "" })?;
    }
    writeln!(text, " ]\n}}")?;
    Ok(text)
}
