//! What a model's folder says, without running it:
//!
//!     cargo run -p vecmill-model --example inspect -- testdata/models/bert-mean

use std::io::{self, Write};
use std::path::PathBuf;

use vecmill_model::{DType, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or("expected a model's folder")?;
    let model = Model::open(&folder)?;
    let (config, pipeline) = (&model.config, &model.pipeline);
    let mut out = io::stdout().lock();
    writeln!(out, "family     {} ({})", config.family.name, config.model_type)?;
    writeln!(
        out,
        "sizes      {} layers of {}, {} heads of {}, {} in between",
        config.layers, config.hidden, config.heads, config.head_size, config.intermediate
    )?;
    writeln!(out, "inputs     up to {} tokens", pipeline.max_tokens)?;
    writeln!(out, "pooling    {}", pipeline.pooling)?;
    writeln!(out, "normalised {}", pipeline.normalize)?;
    for dtype in [DType::F32, DType::F16] {
        writeln!(out, "weights    {} bytes as {dtype:?}", model.weights.bytes_as(dtype))?;
    }
    // Whether all tensors are there, of the shapes that the sizes ask for.
    let architecture = model.architecture()?;
    writeln!(out, "tensors    of all {} layers are there", architecture.layers.len())?;
    for warning in &model.warnings {
        writeln!(out, "warning    {warning}")?;
    }
    Ok(())
}
