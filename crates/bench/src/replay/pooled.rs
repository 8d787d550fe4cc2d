//! vecmill's own pool.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::manager::{Manager, Placed, Refused, Usage};
use super::naive::round;
use super::watched::{Blocks, Watched};
use vecmill_memory::Source;
use vecmill_memory::{Lease, Pool, PoolSettings};

/// A [`Pool`] for a replay. Its clock is the recording's, whatever the source. What it holds is counted
/// where the source hands it out, not by the pool itself.
pub(crate) struct WatchedPool<S: Source> {
    pool: Pool<Watched<S>>,
    blocks: Arc<Blocks>,
    now: Arc<AtomicU64>,
}

impl<S: Source> WatchedPool<S> {
    /// An empty pool over `source`.
    pub(crate) fn new(source: S, budget: usize, settings: PoolSettings) -> Self {
        let now = Arc::new(AtomicU64::new(0));
        let source = Watched::new(source, Arc::clone(&now));
        let blocks = source.blocks();
        Self { pool: Pool::with_settings(source, budget, settings), blocks, now }
    }

    fn set_time(&self, nanoseconds: u64) {
        self.now.store(nanoseconds, Ordering::Relaxed);
    }
}

/// A pool as batches use it: slabs under a budget, kept ready and given back by what the recording asks
/// for.
pub(crate) struct Pooled<'p, S: Source> {
    watched: &'p WatchedPool<S>,
    stream: Box<dyn FnMut(u32) -> S::Stream>,
    streams: HashMap<u32, S::Stream>,
    live: HashMap<u64, Lease<'p, Watched<S>>>,
    leased: usize,
}

impl<'p, S: Source> Pooled<'p, S> {
    /// Leases of `pool`. `stream` makes the stream for each number in the recording.
    pub(crate) fn new(
        pool: &'p WatchedPool<S>,
        stream: impl FnMut(u32) -> S::Stream + 'static,
    ) -> Self {
        Self {
            watched: pool,
            stream: Box::new(stream),
            streams: HashMap::new(),
            live: HashMap::new(),
            leased: 0,
        }
    }
}

impl<S: Source> Manager for Pooled<'_, S> {
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
        self.watched.set_time(nanoseconds);
        let stream = self.streams.entry(stream).or_insert_with_key(|&number| (self.stream)(number));
        let refused = |reason| Refused { manager: "pool".to_owned(), bytes, reason };
        round(bytes).ok_or_else(|| refused("no device is so large".into()))?;
        let lease = self.watched.pool.lease(bytes, stream);
        let lease = lease.map_err(|error| refused(error.to_string()))?;
        self.leased += lease.bytes();
        self.live.insert(id, lease);
        Ok(())
    }

    fn give_back(&mut self, id: u64, nanoseconds: u64) {
        self.watched.set_time(nanoseconds);
        if let Some(lease) = self.live.remove(&id) {
            self.leased -= lease.bytes();
        }
    }

    fn tick(&mut self, nanoseconds: u64) {
        self.watched.set_time(nanoseconds);
        self.watched.pool.maintain();
    }

    fn usage(&self) -> Usage {
        let held = self.watched.blocks.list().values().sum();
        Usage {
            held_bytes: held,
            leased_bytes: self.leased,
            free_bytes: held.saturating_sub(self.leased),
            largest_free_bytes: self.watched.pool.warm_bytes(),
        }
    }

    fn blocks(&self) -> Vec<Placed> {
        let source = self.watched.pool.source();
        let leases: HashMap<u64, u64> =
            self.live.iter().map(|(&id, lease)| (source.address(lease.block()), id)).collect();
        let placed = |(&address, &bytes): (&u64, &usize)| Placed {
            address,
            bytes,
            lease: leases.get(&address).copied(),
        };
        self.watched.blocks.list().iter().map(placed).collect()
    }

    fn driver_calls(&self) -> Vec<(&'static str, u64)> {
        self.watched.pool.source().calls()
    }
}

impl<S: Source> fmt::Debug for WatchedPool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedPool").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl<S: Source> fmt::Debug for Pooled<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled")
            .field("leased", &self.leased)
            .field("live", &self.live.len())
            .finish_non_exhaustive()
    }
}
