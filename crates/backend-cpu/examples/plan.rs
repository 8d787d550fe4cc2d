//! What batches of a model take of memory on a processor, known before a weight is read:
//!
//!     cargo run -p vecmill-backend-cpu --example plan -- testdata/models/bert-mean

use std::io::{self, Write};
use std::path::PathBuf;

use vecmill_backend_cpu::CpuLowering;
use vecmill_encoder::{Programs, Shape};
use vecmill_model::Model;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let model = Model::open(&folder.ok_or("expected a model's folder")?)?;
    let programs = Programs::of(CpuLowering::new(2), &model, None)?;
    let mut out = io::stdout().lock();
    writeln!(out, "weights: {} bytes", programs.weights().reserved_bytes())?;
    writeln!(out, "tokens of 8 texts  steps       bytes")?;
    for longest in [4, 16, 32, 64].map(|tokens: usize| tokens.min(programs.max_tokens())) {
        let shape = Shape { tokens: 8 * longest, sequences: 8, longest };
        let prepared = programs.get(shape);
        let (steps, bytes) = (prepared.program().steps().len(), prepared.plan().peak_bytes());
        writeln!(out, "{:17}  {steps:5}  {bytes:10}", shape.tokens)?;
    }
    Ok(())
}
