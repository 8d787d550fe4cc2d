//! Which part of a staging buffer is used when: the logic of the ring, over the small traits
//! [`Parts`] and [`Part`].
//!
//! The choice behind it: a part that a copy uses is shared between the queue and whoever will read
//! it. A part that nobody shares and whose copy is done goes back, from the oldest on. So reading
//! and dropping end alike, nothing is sent back, and an unread part can't be reused. What finds no
//! room behind one goes around the buffer: a full buffer costs time, and is nobody's failure.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use vecmill_memory::ALIGNMENT;

use crate::driver::DriverError;

/// A buffer that is given out in parts.
pub(super) trait Parts: Debug {
    type Part: Part;

    /// Bytes in all.
    fn capacity(&self) -> usize;

    /// A part of `bytes` bytes; `None` when there is no room.
    fn claim(&mut self, bytes: usize) -> Result<Option<Self::Part>, DriverError>;

    /// Takes a part back, after its copy. Its space is free once all older parts are back.
    fn release(&mut self, part: Self::Part) -> Result<(), DriverError>;
}

/// A part of a buffer, with the copy that uses it.
pub(super) trait Part: Debug {
    fn bytes(&self) -> usize;

    /// Writes all of it, after its copy.
    fn write(&mut self, from: &[u8]) -> Result<(), DriverError>;

    /// Reads all of it, after its copy.
    fn read(&self, into: &mut [u8]) -> Result<(), DriverError>;

    /// Whether its copy is done. Does not wait.
    fn is_done(&mut self) -> Result<bool, DriverError>;

    /// Waits for its copy.
    fn finish(&mut self) -> Result<(), DriverError>;
}

/// What is copied out, until it is read or dropped.
#[derive(Debug)]
pub(super) struct Pieces<P> {
    bytes: usize,
    /// The first bytes, where the buffer had no room for all, or none.
    brought: Vec<u8>,
    /// The others, in order.
    parts: VecDeque<Arc<P>>,
}

/// The parts of a buffer that copies use, oldest first.
#[derive(Debug)]
pub(super) struct Queue<B: Parts> {
    buffer: B,
    /// What is copied at once: a quarter of the buffer, so that the host fills or empties one part
    /// while the device copies others.
    piece: usize,
    in_use: VecDeque<Arc<B::Part>>,
    waits: u64,
}

impl<B: Parts> Queue<B> {
    /// Over a `buffer` of at least [`ALIGNMENT`] bytes.
    pub(super) fn new(buffer: B) -> Self {
        let quarter = buffer.capacity() / 4;
        let piece = (quarter - quarter % ALIGNMENT).max(ALIGNMENT);
        Self { buffer, piece, in_use: VecDeque::new(), waits: 0 }
    }

    pub(super) fn buffer(&self) -> &B {
        &self.buffer
    }

    /// How often the host waited for a copy because there was no room.
    pub(super) fn waits(&self) -> u64 {
        self.waits
    }

    /// Takes all bytes of `from` in and has `send` begin the copy of each piece, of which it's told
    /// the place in `from`. A piece for which unread parts leave no room is copied by `send_now`.
    pub(super) fn copy_in(
        &mut self,
        from: &[u8],
        mut send: impl FnMut(&mut B::Part, Range<usize>) -> Result<(), DriverError>,
        mut send_now: impl FnMut(&[u8], Range<usize>) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        for (piece, at) in from.chunks(self.piece).zip(pieces(from.len(), self.piece)) {
            let Some(mut part) = self.claim(piece.len())? else {
                self.waits += 1;
                send_now(piece, at)?;
                continue;
            };
            let sent = part.write(piece).and_then(|()| send(&mut part, at));
            self.in_use.push_back(Arc::new(part));
            sent?;
        }
        Ok(())
    }

    /// Has `fetch` begin to copy `bytes` bytes out, piece by piece. A piece for which unread parts
    /// leave no room is copied by `fetch_now`.
    pub(super) fn copy_out(
        &mut self,
        bytes: usize,
        mut fetch: impl FnMut(&mut B::Part, Range<usize>) -> Result<(), DriverError>,
        mut fetch_now: impl FnMut(&mut [u8], Range<usize>) -> Result<(), DriverError>,
    ) -> Result<Pieces<B::Part>, DriverError> {
        let mut staged = Pieces { bytes, brought: Vec::new(), parts: VecDeque::new() };
        for at in pieces(bytes, self.piece) {
            let Some(mut part) = self.claim_beside(at.len(), &mut staged)? else {
                // All that came before it has been brought.
                self.waits += 1;
                let start = staged.brought.len();
                staged.brought.resize(start + at.len(), 0);
                fetch_now(&mut staged.brought[start..], at)?;
                continue;
            };
            let fetched = fetch(&mut part, at);
            let part = Arc::new(part);
            self.in_use.push_back(Arc::clone(&part));
            staged.parts.push_back(part);
            fetched?;
        }
        Ok(staged)
    }

    /// Waits for what was copied out and reads it, to as many bytes as it has.
    pub(super) fn read(
        &mut self,
        staged: Pieces<B::Part>,
        into: &mut [u8],
    ) -> Result<(), DriverError> {
        staged.read(into)?;
        self.collect()
    }

    /// As [`claim`](Self::claim), but what is in the way may be of `staged` itself: that is brought.
    fn claim_beside(
        &mut self,
        bytes: usize,
        staged: &mut Pieces<B::Part>,
    ) -> Result<Option<B::Part>, DriverError> {
        loop {
            if let Some(part) = self.claim(bytes)? {
                return Ok(Some(part));
            }
            if !staged.bring_oldest()? {
                return Ok(None);
            }
            self.waits += 1;
        }
    }

    /// A part of `bytes` bytes, at most a piece; waits for the oldest ones until there is room.
    /// `None` when the oldest is unread.
    fn claim(&mut self, bytes: usize) -> Result<Option<B::Part>, DriverError> {
        self.collect()?;
        loop {
            if let Some(part) = self.buffer.claim(bytes)? {
                return Ok(Some(part));
            }
            let Some(oldest) = self.in_use.front_mut().and_then(Arc::get_mut) else {
                return Ok(None);
            };
            oldest.finish()?;
            self.waits += 1;
            self.collect()?;
        }
    }

    /// Gives back what is done with, from the oldest part to the first that isn't.
    fn collect(&mut self) -> Result<(), DriverError> {
        while let Some(oldest) = self.in_use.front_mut().and_then(Arc::get_mut) {
            if !oldest.is_done()? {
                break;
            }
            if let Some(part) = self.in_use.pop_front().and_then(Arc::into_inner) {
                self.buffer.release(part)?;
            }
        }
        Ok(())
    }
}

impl<P: Part> Pieces<P> {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Waits for the oldest part and keeps its bytes elsewhere. `Ok(false)` if there is none.
    fn bring_oldest(&mut self) -> Result<bool, DriverError> {
        let Some(part) = self.parts.pop_front() else {
            return Ok(false);
        };
        let start = self.brought.len();
        self.brought.resize(start + part.bytes(), 0);
        part.read(&mut self.brought[start..])?;
        Ok(true)
    }

    fn read(self, into: &mut [u8]) -> Result<(), DriverError> {
        let mismatch = DriverError::invalid("read of a copy out");
        let (first, mut rest) = into.split_at_mut_checked(self.brought.len()).ok_or(mismatch)?;
        first.copy_from_slice(&self.brought);
        for part in &self.parts {
            let (piece, behind) = rest.split_at_mut_checked(part.bytes()).ok_or(mismatch)?;
            part.read(piece)?;
            rest = behind;
        }
        Ok(())
    }
}

/// `0..bytes` in pieces of `piece`, the last one shorter.
fn pieces(bytes: usize, piece: usize) -> impl Iterator<Item = Range<usize>> {
    (0..bytes).step_by(piece).map(move |start| start..bytes.min(start + piece))
}
