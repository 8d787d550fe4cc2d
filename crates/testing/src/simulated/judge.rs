//! The judge: knows which memory exists and which work uses it until when, and writes down whatever
//! would have been a bug on a real device.
//!
//! The choice behind it: work that touches memory must begin after everything that was queued on
//! that memory before has ended. Anything earlier means that nobody made it wait, even if the two
//! happened not to run at the same time. All work is taken to write.

use std::collections::BTreeMap;
use std::ops::Range;

/// A use of memory that would have been a bug on a real device. Times are in nanoseconds on the
/// device's clock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Work began on memory that another stream's work had not finished with.
    #[error(
        "stream {stream} uses {addresses:#x?} from {begins} on, but stream {earlier_stream} is not \
         done with it before {ends}"
    )]
    UngatedUse {
        /// The memory that both use.
        addresses: Range<u64>,
        /// The stream that should have waited.
        stream: usize,
        /// When its work begins.
        begins: u64,
        /// The stream whose work was queued first.
        earlier_stream: usize,
        /// When that work ends.
        ends: u64,
    },
    /// A block was given back under queued work.
    #[error("block {address:#x} is released at {at}, but in use until {until}")]
    ReleasedInUse {
        /// The block's first address.
        address: u64,
        /// When it was given back.
        at: u64,
        /// When the last work that uses it ends.
        until: u64,
    },
    /// A block was made smaller under queued work that uses the part that went.
    #[error(
        "block {address:#x} shrinks to {bytes} bytes at {at}, but what lies beyond is in use until \
         {until}"
    )]
    ShrunkInUse {
        /// The block's first address.
        address: u64,
        /// Its new size.
        bytes: usize,
        /// When it was made smaller.
        at: u64,
        /// When the last work that uses the lost part ends.
        until: u64,
    },
    /// Work was queued that reaches beyond the end of its block.
    #[error("stream {stream} uses bytes {used:?} of block {address:#x}, which has {bytes}")]
    BeyondBlock {
        /// The block's first address.
        address: u64,
        /// Its size.
        bytes: u64,
        /// What the work uses of it.
        used: Range<u64>,
        /// The stream.
        stream: usize,
    },
    /// Work was queued on addresses that belong to no block.
    #[error("stream {stream} uses {addresses:#x?}, where there is no block")]
    UseAfterRelease {
        /// The addresses.
        addresses: Range<u64>,
        /// The stream.
        stream: usize,
    },
    /// A block was given back that did not exist any more.
    #[error("block {address:#x} is released at {at}, but there is no such block")]
    DoubleRelease {
        /// The address that was to be given back.
        address: u64,
        /// When.
        at: u64,
    },
}

/// Work that has not finished: what it uses of its block, and when it runs.
#[derive(Debug)]
struct Work {
    used: Range<u64>,
    stream: usize,
    end: u64,
}

/// A block that exists.
#[derive(Debug)]
struct Watched {
    bytes: usize,
    reserved: u64,
    work: Vec<Work>,
}

impl Watched {
    /// When the last work ends that uses the block from `offset` on, if that is after `now`.
    fn in_use_until(&self, offset: u64, now: u64) -> Option<u64> {
        let beyond = self.work.iter().filter(|work| work.used.end > offset);
        beyond.map(|work| work.end).max().filter(|end| *end > now)
    }
}

/// All blocks that exist, by address, and what was done wrong with them.
#[derive(Debug, Default)]
pub(super) struct Judge {
    blocks: BTreeMap<u64, Watched>,
    violations: Vec<Violation>,
}

impl Judge {
    pub(super) fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Address and size of each block.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, usize)> {
        self.blocks.iter().map(|(address, block)| (*address, block.bytes))
    }

    pub(super) fn block_bytes(&self, address: u64) -> Option<usize> {
        self.blocks.get(&address).map(|block| block.bytes)
    }

    /// A block was taken. The addresses after it, up to `reserved` bytes, are its as well.
    pub(super) fn taken(&mut self, address: u64, bytes: usize, reserved: u64) {
        self.blocks.insert(address, Watched { bytes, reserved, work: Vec::new() });
    }

    /// A block is about to be cut to `bytes`.
    pub(super) fn shrinks(&mut self, address: u64, bytes: usize, now: u64) {
        let block = self.blocks.get(&address);
        if let Some(until) = block.and_then(|block| block.in_use_until(bytes as u64, now)) {
            self.violations.push(Violation::ShrunkInUse { address, bytes, at: now, until });
        }
    }

    /// A block has another size now.
    pub(super) fn resized(&mut self, address: u64, bytes: usize) {
        if let Some(block) = self.blocks.get_mut(&address) {
            block.bytes = bytes;
        }
    }

    /// A block is about to be given back: its size, if it exists.
    pub(super) fn released(&mut self, address: u64, now: u64) -> Option<usize> {
        let Some(block) = self.blocks.remove(&address) else {
            self.violations.push(Violation::DoubleRelease { address, at: now });
            return None;
        };
        if let Some(until) = block.in_use_until(0, now) {
            self.violations.push(Violation::ReleasedInUse { address, at: now, until });
        }
        Some(block.bytes)
    }

    /// Work was queued that uses `addresses`, wherever they are, during `time`.
    pub(super) fn work_at(
        &mut self,
        addresses: Range<u64>,
        stream: usize,
        time: Range<u64>,
        now: u64,
    ) {
        let before = self.blocks.range(..=addresses.start).next_back();
        let owner = before.filter(|(base, block)| addresses.start - **base < block.reserved);
        match owner.map(|(base, _)| *base) {
            Some(base) => {
                let used = addresses.start - base..addresses.end.saturating_sub(base);
                self.work(base, used, stream, time, now);
            }
            None => self.violations.push(Violation::UseAfterRelease { addresses, stream }),
        }
    }

    /// Work was queued that uses the bytes `used` of the block at `address` during `time`.
    pub(super) fn work(
        &mut self,
        address: u64,
        used: Range<u64>,
        stream: usize,
        time: Range<u64>,
        now: u64,
    ) {
        let Some(block) = self.blocks.get_mut(&address) else {
            let addresses = address.saturating_add(used.start)..address.saturating_add(used.end);
            self.violations.push(Violation::UseAfterRelease { addresses, stream });
            return;
        };
        let bytes = block.bytes as u64;
        if used.end > bytes {
            let used = used.clone();
            self.violations.push(Violation::BeyondBlock { address, bytes, used, stream });
        }
        let used = used.start..used.end.min(bytes);
        if used.is_empty() {
            return;
        }
        // Finished work can't be in the way of anything; nor can work of the same stream on no more
        // memory than this, because this ends later. So the list stays short.
        block.work.retain(|earlier| {
            let covered = used.start <= earlier.used.start && earlier.used.end <= used.end;
            earlier.end > now && !(earlier.stream == stream && covered)
        });
        for earlier in block.work.iter().filter(|earlier| earlier.stream != stream) {
            let both = used.start.max(earlier.used.start)..used.end.min(earlier.used.end);
            if time.start < earlier.end && !both.is_empty() {
                self.violations.push(Violation::UngatedUse {
                    addresses: address + both.start..address + both.end,
                    stream,
                    begins: time.start,
                    earlier_stream: earlier.stream,
                    ends: earlier.end,
                });
            }
        }
        block.work.push(Work { used, stream, end: time.end });
    }

    /// All queued work is gone.
    pub(super) fn forget_work(&mut self) {
        for block in self.blocks.values_mut() {
            block.work.clear();
        }
    }
}

#[cfg(test)]
mod tests;
