//! vecmill's own pool.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::manager::{Manager, Placed, Refused, Usage};
use super::naive::round;
use super::watched::{Blocks, Watched};
use crate::pool::{LeaseId, Pool, PoolSettings};
use crate::source::Source;

/// A [`Pool`] as batches use it: slabs under a budget, kept ready and given back by what the trace
/// asks for.
///
/// The pool's clock is the trace's, whatever the source. What it holds is counted where the source
/// hands it out, not by the pool itself.
pub struct Pooled<S: Source> {
    pool: Pool<Watched<S>>,
    blocks: Arc<Blocks>,
    now: Arc<AtomicU64>,
    stream: Box<dyn FnMut(u32) -> S::Stream>,
    streams: HashMap<u32, S::Stream>,
    live: HashMap<u64, Live>,
    leased: usize,
}

/// A lease that is out.
#[derive(Debug, Clone, Copy)]
struct Live {
    lease: LeaseId,
    address: u64,
    bytes: usize,
}

impl<S: Source> Pooled<S> {
    /// An empty pool over `source`. `stream` makes the stream for each number in the trace.
    ///
    /// ```
    /// use vecmill_memory::replay::Pooled;
    /// use vecmill_memory::{PoolSettings, SimulatedDevice};
    ///
    /// let device = SimulatedDevice::new(1 << 30);
    /// let streams = device.clone();
    /// let pool = Pooled::new(device, 1 << 30, PoolSettings::default(), move |_| streams.stream());
    /// ```
    pub fn new(
        source: S,
        budget: usize,
        settings: PoolSettings,
        stream: impl FnMut(u32) -> S::Stream + 'static,
    ) -> Self {
        let now = Arc::new(AtomicU64::new(0));
        let source = Watched::new(source, Arc::clone(&now));
        Self {
            blocks: source.blocks(),
            pool: Pool::with_settings(source, budget, settings),
            now,
            stream: Box::new(stream),
            streams: HashMap::new(),
            live: HashMap::new(),
            leased: 0,
        }
    }
}

impl<S: Source> Manager for Pooled<S> {
    fn name(&self) -> &str {
        "pool"
    }

    fn lease(
        &mut self,
        id: u64,
        stream: u32,
        bytes: usize,
        nanoseconds: u64,
    ) -> Result<(), Refused> {
        self.now.store(nanoseconds, Ordering::Relaxed);
        let stream = self.streams.entry(stream).or_insert_with_key(|&number| (self.stream)(number));
        let refused = |reason| Refused { manager: "pool".to_owned(), bytes, reason };
        round(bytes).ok_or_else(|| refused("no device is so large".into()))?;
        let lease = self.pool.lease(bytes, stream).map_err(|error| refused(error.to_string()))?;
        let (address, bytes) = (self.pool.source().address(lease.block()), lease.bytes());
        self.leased += bytes;
        self.live.insert(id, Live { lease: lease.detach(), address, bytes });
        Ok(())
    }

    fn give_back(&mut self, id: u64, nanoseconds: u64) {
        self.now.store(nanoseconds, Ordering::Relaxed);
        if let Some(Live { lease, bytes, .. }) = self.live.remove(&id) {
            self.leased -= bytes;
            drop(self.pool.attach(lease));
        }
    }

    fn tick(&mut self, nanoseconds: u64) {
        self.now.store(nanoseconds, Ordering::Relaxed);
        self.pool.maintain();
    }

    fn usage(&self) -> Usage {
        let held = self.blocks.list().values().sum();
        Usage {
            held_bytes: held,
            leased_bytes: self.leased,
            free_bytes: held.saturating_sub(self.leased),
            largest_free_bytes: self.pool.warm_bytes(),
        }
    }

    fn blocks(&self) -> Vec<Placed> {
        let leases: HashMap<u64, u64> =
            self.live.iter().map(|(&id, live)| (live.address, id)).collect();
        let placed = |(&address, &bytes): (&u64, &usize)| Placed {
            address,
            bytes,
            lease: leases.get(&address).copied(),
        };
        self.blocks.list().iter().map(placed).collect()
    }

    fn driver_calls(&self) -> Vec<(&'static str, u64)> {
        self.pool.source().calls()
    }
}

impl<S: Source> fmt::Debug for Pooled<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled")
            .field("leased", &self.leased)
            .field("live", &self.live.len())
            .finish_non_exhaustive()
    }
}
