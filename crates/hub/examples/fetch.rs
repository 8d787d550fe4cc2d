//! Gets a model's files and says where they are:
//!
//!     cargo run -p vecmill-hub --example fetch -- intfloat/e5-small-v2
//!
//! Without a name it is the default model. What is in the cache already needs no network.

use std::io::{self, Write};
use std::sync::Arc;

use vecmill_hub::{Fetcher, Stage};
use vecmill_model::ModelRef;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).map_or(Ok(ModelRef::default()), |name| name.parse())?;
    let progress = Arc::new(|stage| {
        let mut out = io::stderr().lock();
        let _ = match stage {
            Stage::Fetching { file, done, total: Some(total) } => {
                write!(out, "\r{file}: {done} of {total} bytes")
            }
            Stage::Fetching { file, done, total: None } => write!(out, "\r{file}: {done} bytes"),
            Stage::Waiting { reason, wait } => writeln!(out, "\n{reason}: again in {wait:?}"),
        };
    });
    let folder = Fetcher::new(None, None, progress).fetch(&model)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{model} is in {}", folder.display())?;
    for entry in std::fs::read_dir(&folder)? {
        let entry = entry?;
        writeln!(out, "{:>12}  {}", entry.metadata()?.len(), entry.file_name().display())?;
    }
    Ok(())
}
