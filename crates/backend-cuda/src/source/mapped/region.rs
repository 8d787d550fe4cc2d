//! A range of addresses and the chunks mapped to its start.
//!
//! The choice behind it: every change is undone if a call in it fails, and memory is given back
//! last, when nothing can fail any more that matters. A chunk that the driver won't take back is
//! kept and offered again.

use std::fmt::Debug;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use crate::driver::DriverError;

/// Addresses and memory, apart. Offsets are bytes from the start of the addresses.
pub(super) trait Vmm: Debug + Send + Sync + 'static {
    /// A reserved range of addresses.
    type Addresses: Debug + Send;
    /// Memory without an address.
    type Chunk: Debug + Send;

    fn reserve(&self, bytes: usize) -> Result<Self::Addresses, DriverError>;
    fn create(&self, bytes: usize) -> Result<Self::Chunk, DriverError>;

    /// Puts `chunk` behind the addresses `at`, as long as it is and free.
    fn map(
        &self,
        on: &Self::Addresses,
        at: &Range<usize>,
        chunk: &Self::Chunk,
    ) -> Result<(), DriverError>;

    /// Lets the device use the addresses `at`, mapped throughout.
    fn set_access(&self, on: &Self::Addresses, at: &Range<usize>) -> Result<(), DriverError>;

    /// Takes one chunk away from the addresses `at`.
    fn unmap(&self, on: &Self::Addresses, at: &Range<usize>) -> Result<(), DriverError>;

    /// Gives memory back; returns it if that is refused.
    fn release(&self, chunk: Self::Chunk) -> Result<(), (Self::Chunk, DriverError)>;

    /// Gives addresses back, to which nothing is mapped.
    fn free(&self, addresses: Self::Addresses) -> Result<(), DriverError>;
}

/// A chunk and where it is mapped.
#[derive(Debug)]
struct Piece<C> {
    at: Range<usize>,
    chunk: C,
}

/// A resize did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) error: DriverError,
    /// Undoing failed too: the region can only be released.
    pub(super) broken: bool,
}

/// Reserved addresses, the first of them with memory behind them. To be released, not dropped.
#[must_use]
#[derive(Debug)]
pub(super) struct Region<V: Vmm> {
    memory: Arc<V>,
    addresses: V::Addresses,
    largest_chunk: usize,
    /// One behind the other, from the first address on.
    pieces: Vec<Piece<V::Chunk>>,
    /// Mapped behind the pieces, because undoing could not unmap them.
    stuck: Vec<Piece<V::Chunk>>,
    /// Mapped nowhere, because the driver did not take them back.
    owed: Vec<V::Chunk>,
}

impl<V: Vmm> Region<V> {
    /// Reserves `reach` bytes of addresses and puts memory behind the first `bytes`, in chunks of
    /// at most `largest_chunk`. Takes nothing if it fails.
    pub(super) fn new(
        memory: &Arc<V>,
        reach: usize,
        bytes: usize,
        largest_chunk: usize,
    ) -> Result<Self, DriverError> {
        let addresses = memory.reserve(reach)?;
        let mut region = Self {
            memory: Arc::clone(memory),
            addresses,
            largest_chunk,
            pieces: Vec::new(),
            stuck: Vec::new(),
            owed: Vec::new(),
        };
        match region.grow(bytes) {
            Ok(()) => Ok(region),
            Err(error) => {
                // It says why the memory can't be had; that giving back fails as well says less.
                let _ = region.release();
                Err(error)
            }
        }
    }

    /// Bytes with memory behind them.
    pub(super) fn bytes(&self) -> usize {
        self.pieces.last().map_or(0, |piece| piece.at.end)
    }

    pub(super) fn addresses(&self) -> &V::Addresses {
        &self.addresses
    }

    pub(super) fn memory(&self) -> &V {
        &self.memory
    }

    /// Makes it `bytes` long. Keeps the chunks that end by there; one that is cut is replaced.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), Refused> {
        self.settle();
        if bytes < self.bytes() {
            self.shrink(bytes)
        } else {
            self.grow(bytes).map_err(|error| Refused { error, broken: false })
        }
    }

    /// Gives everything back, as much as can be; the error is the first.
    pub(super) fn release(mut self) -> Result<(), DriverError> {
        let mut result = Ok(());
        let pieces = self.pieces.drain(..).chain(self.stuck.drain(..));
        for piece in pieces.rev() {
            result = result.and(self.memory.unmap(&self.addresses, &piece.at));
            // A mapping that stays keeps its memory; without the handle it is the last to do so.
            result = result.and(self.memory.release(piece.chunk).map_err(|(_, error)| error));
        }
        for chunk in self.owed {
            result = result.and(self.memory.release(chunk).map_err(|(_, error)| error));
        }
        result.and(self.memory.free(self.addresses))
    }

    fn grow(&mut self, bytes: usize) -> Result<(), DriverError> {
        let (from, before) = (self.bytes(), self.pieces.len());
        if bytes == from {
            return Ok(());
        }
        let grown = self
            .append(from, bytes)
            .and_then(|()| self.memory.set_access(&self.addresses, &(from..bytes)));
        if grown.is_err() {
            for piece in self.pieces.split_off(before).into_iter().rev() {
                self.take_away(piece);
            }
        }
        grown
    }

    /// Maps new chunks behind the addresses `from..to`.
    fn append(&mut self, from: usize, to: usize) -> Result<(), DriverError> {
        let mut start = from;
        while start < to {
            let at = start..to.min(start + self.largest_chunk);
            let chunk = self.memory.create(at.len())?;
            if let Err(error) = self.memory.map(&self.addresses, &at, &chunk) {
                self.give_back(chunk);
                return Err(error);
            }
            start = at.end;
            self.pieces.push(Piece { at, chunk });
        }
        Ok(())
    }

    fn shrink(&mut self, bytes: usize) -> Result<(), Refused> {
        let kept = self.pieces.partition_point(|piece| piece.at.end <= bytes);
        let start = self.pieces[..kept].last().map_or(0, |piece| piece.at.end);
        // First what may be refused for want of memory.
        let cut = if start < bytes {
            let chunk = self.memory.create(bytes - start);
            let chunk = chunk.map_err(|error| Refused { error, broken: false })?;
            Some(Piece { at: start..bytes, chunk })
        } else {
            None
        };
        let removed = self.pieces.split_off(kept);
        let swapped = self.swap(&removed, cut.as_ref());
        let (stays, goes) = match swapped {
            Ok(()) => (Vec::from_iter(cut), removed),
            Err(_) => (removed, Vec::from_iter(cut)),
        };
        self.pieces.extend(stays);
        for piece in goes {
            self.give_back(piece.chunk);
        }
        swapped
    }

    /// Unmaps `old`, the last pieces, and maps `new` there instead; or leaves `old` mapped.
    fn swap(&self, old: &[Piece<V::Chunk>], new: Option<&Piece<V::Chunk>>) -> Result<(), Refused> {
        for (index, piece) in old.iter().enumerate().rev() {
            if let Err(error) = self.memory.unmap(&self.addresses, &piece.at) {
                return Err(self.restore(&old[index + 1..], error));
            }
        }
        match new.map_or(Ok(()), |piece| self.put(piece)) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.restore(old, error)),
        }
    }

    /// Maps `pieces` again after `error`.
    fn restore(&self, pieces: &[Piece<V::Chunk>], error: DriverError) -> Refused {
        let broken = pieces.iter().any(|piece| self.put(piece).is_err());
        Refused { error, broken }
    }

    /// Maps a piece for the device to use, or leaves its addresses free.
    fn put(&self, piece: &Piece<V::Chunk>) -> Result<(), DriverError> {
        self.memory.map(&self.addresses, &piece.at, &piece.chunk)?;
        let usable = self.memory.set_access(&self.addresses, &piece.at);
        if usable.is_err() {
            // Should this fail as well, whatever is to be mapped here next will, and say so.
            let _ = self.memory.unmap(&self.addresses, &piece.at);
        }
        usable
    }

    /// Unmaps a piece and gives its chunk back.
    fn take_away(&mut self, piece: Piece<V::Chunk>) {
        match self.memory.unmap(&self.addresses, &piece.at) {
            Ok(()) => self.give_back(piece.chunk),
            Err(_) => self.stuck.push(piece),
        }
    }

    fn give_back(&mut self, chunk: V::Chunk) {
        if let Err((chunk, _)) = self.memory.release(chunk) {
            self.owed.push(chunk);
        }
    }

    /// Tries once more to give back what earlier calls could not.
    fn settle(&mut self) {
        for piece in mem::take(&mut self.stuck) {
            self.take_away(piece);
        }
        for chunk in mem::take(&mut self.owed) {
            self.give_back(chunk);
        }
    }
}
