//! Planned, pooled memory for batches of work on a device.
//!
//! The parts, in the order in which a batch meets them:
//!
//! - [`Planner`] turns the lifetimes of a batch's buffers into a [`Plan`]: an offset for each buffer
//!   inside one slab, and the slab's exact size.
//! - [`Pool`] holds slabs under a byte budget and hands one out per batch as a [`Lease`], which
//!   comes back by itself when dropped.
//! - [`Source`] is where a pool gets its memory. [`HostSource`] is this machine's main memory;
//!   devices bring their own.
//!
//! The choice behind it: one lease per batch. A buffer is then a base address plus an offset known
//! before the batch starts, so the work itself never allocates, and whether a batch fits is decided
//! before it runs.
//!
//! ```
//! use vecmill_memory::{HostSource, Planner, Pool};
//!
//! # fn main() -> Result<(), vecmill_memory::LeaseError> {
//! let mut planner = Planner::new();
//! let hidden = planner.buffer(4096, 0..=2);
//! let scores = planner.buffer(1024, 1..=1);
//! let output = planner.buffer(1024, 2..=3); // may take the place of `scores`
//! let plan = planner.plan();
//! assert_eq!(plan.peak_bytes(), 4096 + 1024);
//! assert_eq!(plan.offset(scores), plan.offset(output));
//!
//! let pool = Pool::new(HostSource, 64 << 20);
//! let mut lease = pool.lease(plan.peak_bytes(), &())?;
//! lease.block_mut().bytes_mut()[plan.offset(hidden)] = 1;
//! drop(lease); // the slab waits in the pool for the next batch
//! assert_eq!(pool.statistics().leased_bytes, 0);
//! # Ok(())
//! # }
//! ```

mod budget;
mod host;
mod plan;
mod pool;
pub mod recording;
mod source;
mod sync;

pub use host::{HostBlock, HostSource};
pub use plan::{ALIGNMENT, BufferId, Plan, PlannedBuffer, Planner};
pub use pool::{
    GiveBack, LatencyBucket, Lease, LeaseError, Leases, Maintained, Pool, PoolSettings, Region,
    Remedy, Reservation, Statistics, Trimmer,
};
pub use source::{Cause, Source, SourceError};

/// Pools and leases go between threads.
const _: () = {
    const fn both<T: Send + Sync>() {}
    both::<Pool<HostSource>>();
    both::<Plan>();
    both::<Statistics>();
    both::<LeaseError>();
    both::<SourceError>();
    both::<recording::Recording>();
    const fn sent<T: Send>() {}
    sent::<Lease<'_, HostSource>>();
    sent::<Region<HostBlock>>();
    sent::<Reservation>();
    sent::<Trimmer>();
};

/// Its example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
