//! The pool that many services write for themselves.

use std::collections::HashMap;

use super::manager::{Manager, Placed, Refused, Usage};
use vecmill_memory::Source;

/// Sources give memory in multiples of this.
const GRANULE: usize = 2 << 20;

/// A list of buffers: a lease takes the first free one that is large enough, whole, or else a new
/// one of its own size. No buffer is ever given back.
#[derive(Debug)]
pub(crate) struct Naive<S: Source> {
    source: S,
    buffers: Vec<Buffer<S::Block>>,
    live: HashMap<u64, usize>,
    held: usize,
    leased: usize,
}

#[derive(Debug)]
struct Buffer<B> {
    block: B,
    bytes: usize,
    lease: Option<u64>,
}

impl<S: Source> Naive<S> {
    /// A manager without buffers, which takes what `source` gives.
    pub(crate) fn new(source: S) -> Self {
        Self { source, buffers: Vec::new(), live: HashMap::new(), held: 0, leased: 0 }
    }
}

impl<S: Source> Manager for Naive<S> {
    fn name(&self) -> &str {
        "naive"
    }

    fn lease(&mut self, id: u64, _: u32, bytes: usize, _: u64) -> Result<(), Refused> {
        let fits = |buffer: &Buffer<_>| buffer.lease.is_none() && buffer.bytes >= bytes;
        let index = if let Some(index) = self.buffers.iter().position(fits) {
            index
        } else {
            let refused = |reason| Refused { manager: self.name().to_owned(), bytes, reason };
            let rounded = round(bytes).ok_or_else(|| refused("no device is so large".into()))?;
            let block = self.source.allocate(rounded);
            let block = block.map_err(|error| refused(error.to_string()))?;
            self.buffers.push(Buffer { block, bytes: rounded, lease: None });
            self.held += rounded;
            self.buffers.len() - 1
        };
        if let Some(buffer) = self.buffers.get_mut(index) {
            buffer.lease = Some(id);
            self.leased += buffer.bytes;
            self.live.insert(id, index);
        }
        Ok(())
    }

    fn give_back(&mut self, id: u64, _: u64) {
        if let Some(index) = self.live.remove(&id)
            && let Some(buffer) = self.buffers.get_mut(index)
        {
            buffer.lease = None;
            self.leased -= buffer.bytes;
        }
    }

    fn tick(&mut self, _: u64) {}

    fn usage(&self) -> Usage {
        let free = self.buffers.iter().filter(|buffer| buffer.lease.is_none());
        Usage {
            held_bytes: self.held,
            leased_bytes: self.leased,
            free_bytes: self.held - self.leased,
            largest_free_bytes: free.map(|buffer| buffer.bytes).max().unwrap_or(0),
        }
    }

    fn blocks(&self) -> Vec<Placed> {
        let placed = |buffer: &Buffer<S::Block>| Placed {
            address: self.source.address(&buffer.block),
            bytes: buffer.bytes,
            lease: buffer.lease,
        };
        self.buffers.iter().map(placed).collect()
    }

    fn driver_calls(&self) -> Vec<(&'static str, u64)> {
        self.source.calls()
    }
}

/// `bytes` as sources take it: whole granules, at least one.
pub(super) fn round(bytes: usize) -> Option<usize> {
    bytes.max(1).checked_next_multiple_of(GRANULE)
}
