//! This machine's main memory: anonymous mappings for slabs.
//!
//! Mapped rather than taken from the heap: a slab that is dropped goes straight back to the system,
//! and pages that a batch never touches are never resident.

use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapMut;

use crate::source::{Cause, Source, SourceError};

/// Main memory, mapped anonymously and zeroed by the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostSource;

/// A page-aligned block of main memory.
#[derive(Debug)]
pub struct HostBlock(MmapMut);

impl HostBlock {
    /// The block's memory.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The block's memory, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Mappings made and undone by this process, for [`Source::calls`].
static MAPPED: AtomicU64 = AtomicU64::new(0);
static UNMAPPED: AtomicU64 = AtomicU64::new(0);

impl Drop for HostBlock {
    fn drop(&mut self) {
        UNMAPPED.fetch_add(1, Ordering::Relaxed);
    }
}

impl Source for HostSource {
    type Block = HostBlock;
    type Stream = ();
    type Event = ();

    fn name(&self) -> &str {
        "host memory"
    }

    fn allocate(&self, bytes: usize) -> Result<HostBlock, SourceError> {
        let map = MmapMut::map_anon(bytes).map_err(|error| {
            SourceError::new(self.name(), "map", bytes, Cause::Exhausted, error.to_string())
        })?;
        MAPPED.fetch_add(1, Ordering::Relaxed);
        advise_huge_pages(&map);
        Ok(HostBlock(map))
    }

    fn address(&self, block: &HostBlock) -> u64 {
        block.0.as_ptr().addr() as u64
    }

    fn event(&self) -> Result<(), SourceError> {
        Ok(())
    }

    fn record(&self, (): &mut (), (): &()) -> Result<(), SourceError> {
        Ok(())
    }

    fn wait(&self, (): &(), (): &()) -> Result<(), SourceError> {
        Ok(())
    }

    fn has_passed(&self, (): &()) -> Result<bool, SourceError> {
        Ok(true)
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![("map", read(&MAPPED)), ("unmap", read(&UNMAPPED))]
    }

    fn poison(&self, block: &mut HostBlock) {
        block.bytes_mut().fill(0xff);
    }
}

/// Asks for 2 MiB pages, without which large matrices miss the processor's address cache. A system
/// that has none to give does without.
fn advise_huge_pages(map: &MmapMut) {
    #[cfg(all(target_os = "linux", not(miri)))] // Miri does not know the advice
    let _ = map.advise(memmap2::Advice::HugePage);
    #[cfg(any(not(target_os = "linux"), miri))]
    let _ = map;
}
