//! Times one linear layer in vecmill's CPU backend and the same product in faer, in alternation
//! (A B B A), and prints a Markdown table of medians.
//!
//! `cargo run --release -- 2` uses two threads for each. vecmill's time includes packing the rows
//! and adding the bias; its weights are packed before, as at loading. faer's does neither.

use std::error::Error;
use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use vecmill_backend_cpu::CpuBackend;
use vecmill_encoder::{
    Activation, Backend, Buffer, Linear, LinearTensors, TensorView, Workspace,
};
use vecmill_memory::{HostSource, Source};

/// Rows, inputs, outputs.
const SHAPES: [(usize, usize, usize); 6] = [
    (4096, 384, 1152),
    (4096, 384, 384),
    (4096, 384, 1536),
    (4096, 1536, 384),
    (10, 384, 1536),
    (10, 1536, 384),
];
const ROUNDS: usize = 12;
const SECONDS_PER_TURN: f64 = 0.1;

fn main() -> Result<(), Box<dyn Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |count| count.parse())?;
    println!("| rows × inputs → outputs | vecmill GFLOP/s | faer GFLOP/s | ratio |");
    println!("|---|---|---|---|");
    for (rows, inputs, outputs) in SHAPES {
        let (ours, theirs) = compare(threads, rows, inputs, outputs)?;
        let ratio = ours / theirs;
        println!("| {rows} × {inputs} → {outputs} | {ours:.0} | {theirs:.0} | {ratio:.2} |");
    }
    Ok(())
}

fn compare(
    threads: usize,
    rows: usize,
    inputs: usize,
    outputs: usize,
) -> Result<(f64, f64), Box<dyn Error>> {
    let values = |count: usize| -> Vec<f32> { (0..count).map(|i| (i % 31) as f32 / 32.0).collect() };
    let (x, w) = (values(rows * inputs), values(outputs * inputs));
    let mut y = vec![0.0_f32; rows * outputs];

    let backend = CpuBackend::new(threads)?;
    let weight = TensorView::from_f32("weight", &[outputs, inputs], w.clone())?;
    let weights = backend.load_linear(&[LinearTensors { weight, bias: None }])?;
    let bytes = backend.linear_workspace(rows, inputs, outputs);
    let input = Buffer { offset: 0, rows, columns: inputs };
    let output = Buffer { offset: rows * inputs * 4, rows, columns: outputs };
    let workspace = Workspace { offset: output.offset + rows * outputs * 4, bytes };
    let mut slab = HostSource.allocate(workspace.offset + bytes)?;
    for (slot, value) in slab.bytes_mut().chunks_exact_mut(4).zip(&x) {
        slot.copy_from_slice(&value.to_ne_bytes());
    }
    let activation = Activation::Identity;
    let op = Linear { input, weights: &weights, activation, output, workspace };

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                ours.push(seconds(|| {
                    backend.run_batch(|| backend.linear(&mut slab, &op)).expect("it ran before");
                }));
            } else {
                theirs.push(seconds(|| {
                    matmul(
                        MatMut::from_row_major_slice_mut(&mut y, rows, outputs),
                        Accum::Replace,
                        MatRef::from_row_major_slice(&x, rows, inputs),
                        MatRef::from_row_major_slice(&w, outputs, inputs).transpose(),
                        1.0,
                        Par::rayon(threads),
                    );
                }));
            }
        }
    }
    let flops = 2.0 * (rows * inputs * outputs) as f64;
    Ok((flops / median(ours) / 1e9, flops / median(theirs) / 1e9))
}

/// Seconds of one run, over as many as fit a turn.
fn seconds(mut run: impl FnMut()) -> f64 {
    let (started, mut runs) = (Instant::now(), 0);
    while started.elapsed().as_secs_f64() < SECONDS_PER_TURN {
        run();
        runs += 1;
    }
    started.elapsed().as_secs_f64() / f64::from(runs)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
