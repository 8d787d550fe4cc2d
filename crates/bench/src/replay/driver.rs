//! Ways of managing a GPU's memory that only exist on one: through the driver, tensor by tensor.

use std::collections::HashMap;

use super::{Manager, Placed, Refused, Usage};
use vecmill_backend_cuda::{
    CudaStream, Gpu, OrderedBlock, PlainBlock, PlainSource, StreamOrderedSource,
};
use vecmill_memory::{Source, SourceError};

use crate::record::TENSORS_PER_BATCH;

fn refused(manager: &str, bytes: usize, reason: &SourceError) -> Refused {
    Refused { manager: manager.to_owned(), bytes, reason: reason.to_string() }
}

/// `cuMemAlloc` and `cuMemFree` for each tensor. What is held is what the device says is missing.
pub(crate) struct PlainCalls {
    device: Gpu,
    source: PlainSource,
    free_before: usize,
    live: HashMap<u64, PlainBlock>,
    leased: usize,
}

impl PlainCalls {
    pub(crate) fn new(device: &Gpu) -> Result<Self, SourceError> {
        Ok(Self {
            source: PlainSource::new(device),
            free_before: device.memory_info()?.free,
            device: device.clone(),
            live: HashMap::new(),
            leased: 0,
        })
    }
}

impl Manager for PlainCalls {
    fn name(&self) -> &str {
        "cuMemAlloc"
    }

    fn lease(&mut self, id: u64, _: u32, bytes: usize, _: u64) -> Result<(), Refused> {
        let block = self.source.allocate(bytes);
        let block = block.map_err(|error| refused(self.name(), bytes, &error))?;
        self.leased += block.bytes();
        self.live.insert(id, block);
        Ok(())
    }

    fn give_back(&mut self, id: u64, _: u64) {
        if let Some(block) = self.live.remove(&id) {
            self.leased -= block.bytes();
            drop(block);
        }
    }

    fn tick(&mut self, _: u64) {}

    fn usage(&self) -> Usage {
        let held = self.device.memory_info().map(|now| self.free_before.saturating_sub(now.free));
        // A lost device has answered the leases before.
        let held_bytes = held.unwrap_or(0).max(self.leased);
        // The driver gives back at once: what it rounds up is nobody's.
        Usage { held_bytes, leased_bytes: held_bytes, ..Usage::default() }
    }

    fn blocks(&self) -> Vec<Placed> {
        let placed = |(&id, block): (&u64, &PlainBlock)| Placed {
            address: block.address(),
            bytes: block.bytes(),
            lease: Some(id),
        };
        self.live.iter().map(placed).collect()
    }

    fn driver_calls(&self) -> Vec<(&'static str, u64)> {
        self.source.calls()
    }
}

/// `cuMemAllocAsync` and `cuMemFreeAsync` for each tensor, on its batch's stream, which is waited
/// for when the batch is done, as a service does to read its vectors.
pub(crate) struct StreamOrdered {
    name: &'static str,
    source: StreamOrderedSource,
    device: Gpu,
    streams: HashMap<u32, (CudaStream, u64)>,
    live: HashMap<u64, (OrderedBlock, u32)>,
}

impl StreamOrdered {
    pub(crate) fn new(
        device: &Gpu,
        name: &'static str,
        threshold: u64,
    ) -> Result<Self, SourceError> {
        Ok(Self {
            name,
            source: StreamOrderedSource::new(device, threshold)?,
            device: device.clone(),
            streams: HashMap::new(),
            live: HashMap::new(),
        })
    }

    /// The stream, after its last batch is done if this tensor belongs to another.
    fn stream(&mut self, number: u32, batch: u64) -> Result<CudaStream, SourceError> {
        if let Some((stream, last)) = self.streams.get_mut(&number) {
            if *last != batch {
                stream.synchronize()?;
                *last = batch;
            }
            return Ok(stream.clone());
        }
        let stream = self.device.stream()?;
        self.streams.insert(number, (stream.clone(), batch));
        Ok(stream)
    }
}

impl Manager for StreamOrdered {
    fn name(&self) -> &str {
        self.name
    }

    fn lease(&mut self, id: u64, stream: u32, bytes: usize, _: u64) -> Result<(), Refused> {
        let number = stream;
        let block = self
            .stream(number, id / TENSORS_PER_BATCH)
            .and_then(|stream| self.source.allocate_in(&stream, bytes))
            .map_err(|error| refused(self.name, bytes, &error))?;
        self.live.insert(id, (block, number));
        Ok(())
    }

    fn give_back(&mut self, id: u64, _: u64) {
        if let Some((block, number)) = self.live.remove(&id)
            && let Some((stream, _)) = self.streams.get(&number)
        {
            // The block is gone also when the device objects, and a replay has nobody to tell.
            let _ = self.source.release_in(stream, block);
        }
    }

    fn tick(&mut self, _: u64) {}

    fn usage(&self) -> Usage {
        let bytes = |bytes: Result<u64, SourceError>| bytes.map_or(0, |bytes| bytes as usize);
        let held_bytes = bytes(self.source.reserved_bytes());
        let leased_bytes = bytes(self.source.used_bytes());
        let free_bytes = held_bytes.saturating_sub(leased_bytes);
        // The driver doesn't say how its free memory lies: the best case.
        Usage { held_bytes, leased_bytes, free_bytes, largest_free_bytes: free_bytes }
    }

    fn blocks(&self) -> Vec<Placed> {
        let placed = |(&id, (block, _)): (&u64, &(OrderedBlock, u32))| Placed {
            address: block.address(),
            bytes: block.bytes(),
            lease: Some(id),
        };
        self.live.iter().map(placed).collect()
    }

    fn driver_calls(&self) -> Vec<(&'static str, u64)> {
        self.source.calls()
    }
}
