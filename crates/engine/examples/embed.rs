//! Texts to vectors: `cargo run --release -p vecmill-engine --example embed -- [MODEL OR FOLDER]`.

use std::io::{self, Write};

use vecmill_engine::{Engine, ModelRef, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).map_or(Ok(ModelRef::default()), |name| name.parse())?;
    let engine = Engine::builder().model(model).start()?;
    let reply = engine.embed_blocking(Request::new(["a quick brown fox", "jumps"]))?;
    let mut out = io::stdout().lock();
    for embedding in &reply.embeddings {
        let start = &embedding.vector[..embedding.vector.len().min(4)];
        writeln!(
            out,
            "{} tokens, {} numbers: {start:.4?} …",
            embedding.tokens,
            embedding.vector.len()
        )?;
    }
    Ok(())
}
