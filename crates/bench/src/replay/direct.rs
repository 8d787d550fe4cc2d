//! No pool at all.

use std::collections::HashMap;

use super::manager::{Manager, Placed, Refused, Usage};
use super::naive::round;
use vecmill_memory::Source;

/// Takes each lease's memory from the source and gives it back right after: what a program does
/// that calls the driver for each tensor.
#[derive(Debug)]
pub(crate) struct PerTensor<S: Source> {
    source: S,
    live: HashMap<u64, (S::Block, usize)>,
    held: usize,
}

impl<S: Source> PerTensor<S> {
    /// A manager that holds nothing, and takes what `source` gives.
    pub(crate) fn new(source: S) -> Self {
        Self { source, live: HashMap::new(), held: 0 }
    }
}

impl<S: Source> Manager for PerTensor<S> {
    fn name(&self) -> &str {
        "direct"
    }

    fn lease(&mut self, id: u64, _: u32, bytes: usize, _: u64) -> Result<(), Refused> {
        let refused = |reason| Refused { manager: self.name().to_owned(), bytes, reason };
        let rounded = round(bytes).ok_or_else(|| refused("no device is so large".into()))?;
        let block = self.source.allocate(rounded).map_err(|error| refused(error.to_string()))?;
        self.held += rounded;
        self.live.insert(id, (block, rounded));
        Ok(())
    }

    fn give_back(&mut self, id: u64, _: u64) {
        if let Some((block, bytes)) = self.live.remove(&id) {
            self.held -= bytes;
            // The block is gone also when the device objects, and a replay has nobody to tell.
            let _ = self.source.release(block);
        }
    }

    fn tick(&mut self, _: u64) {}

    fn usage(&self) -> Usage {
        Usage { held_bytes: self.held, leased_bytes: self.held, ..Usage::default() }
    }

    fn blocks(&self) -> Vec<Placed> {
        let placed = |(&id, (block, bytes)): (&u64, &(S::Block, usize))| Placed {
            address: self.source.address(block),
            bytes: *bytes,
            lease: Some(id),
        };
        self.live.iter().map(placed).collect()
    }

    fn driver_calls(&self) -> Vec<(&'static str, u64)> {
        self.source.calls()
    }
}
