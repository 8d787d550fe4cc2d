//! The records of the blocks: one growing vector, linked by index.
//!
//! A record is 32 bytes and never straddles a cache line. Record 0 is the [`EDGE`]: it stands before
//! the first block and after the last, and for the end of every free list, so that links are
//! written without asking whether a neighbour exists. Records that lost their block are chained
//! through `list_after` and reused, the last one first: it's the likeliest to be in the cache.

use std::ops::{Index, IndexMut};

/// The record that is no block.
pub(super) const EDGE: u32 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The edge, or a record that waits for a block.
    Absent,
    Free,
    /// Handed out. `slack` is what rounding added to the request: 256 for an empty one.
    Live {
        slack: u16,
    },
}

/// One block: `granules` granules from `start`.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
pub(super) struct Node {
    pub(super) start: u32,
    pub(super) granules: u32,
    /// The physical neighbours.
    pub(super) before: u32,
    pub(super) after: u32,
    /// The neighbours in the free list, while the block is free.
    pub(super) list_before: u32,
    pub(super) list_after: u32,
    /// How often this record was handed out: what tells a stale span from a live one.
    pub(super) generation: u32,
    pub(super) state: State,
}

const _: () = assert!(size_of::<Node>() == 32);

const ABSENT: Node = Node {
    start: 0,
    granules: 0,
    before: EDGE,
    after: EDGE,
    list_before: EDGE,
    list_after: EDGE,
    generation: 0,
    state: State::Absent,
};

#[derive(Debug)]
pub(super) struct Nodes {
    records: Vec<Node>,
    spare: u32,
    /// Counts records looked at, so that tests can hold operations to a constant.
    #[cfg(test)]
    pub(super) visits: std::cell::Cell<usize>,
}

impl Nodes {
    pub(super) fn new() -> Self {
        Self {
            records: vec![ABSENT],
            spare: EDGE,
            #[cfg(test)]
            visits: std::cell::Cell::default(),
        }
    }

    /// The record that `index` names, if there is one.
    pub(super) fn get(&self, index: u32) -> Option<&Node> {
        self.records.get(index as usize)
    }

    /// The block at the end of the range, or the edge when there is none.
    pub(super) fn last(&self) -> u32 {
        self[EDGE].before
    }

    /// Adds a free block, in no list yet, physically before the block `after`.
    pub(super) fn insert_before(&mut self, after: u32, start: u32, granules: u32) -> u32 {
        let index = self.reuse();
        let before = self[after].before;
        let node = &mut self[index];
        (node.start, node.granules, node.state) = (start, granules, State::Free);
        self.join(before, index);
        self.join(index, after);
        index
    }

    /// Removes a block, which is in no list, and joins its neighbours.
    pub(super) fn remove(&mut self, index: u32) {
        let Node { before, after, .. } = self[index];
        self.join(before, after);
        let spare = self.spare;
        let node = &mut self[index];
        (node.state, node.list_after) = (State::Absent, spare);
        self.spare = index;
    }

    fn join(&mut self, before: u32, after: u32) {
        self[before].after = after;
        self[after].before = before;
    }

    fn reuse(&mut self) -> u32 {
        let index = self.spare;
        if index == EDGE {
            self.records.push(ABSENT);
            // There are never more blocks than granules, which a u32 counts.
            return (self.records.len() - 1) as u32;
        }
        self.spare = self[index].list_after;
        index
    }

    /// How many records are blocks, for tests.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> usize {
        let mut spares = 0;
        let mut spare = self.spare;
        while spare != EDGE {
            assert_eq!(self[spare].state, State::Absent);
            spares += 1;
            spare = self[spare].list_after;
        }
        self.records.len() - 1 - spares
    }
}

impl Index<u32> for Nodes {
    type Output = Node;

    #[inline]
    fn index(&self, index: u32) -> &Node {
        #[cfg(test)]
        self.visits.set(self.visits.get() + 1);
        &self.records[index as usize]
    }
}

impl IndexMut<u32> for Nodes {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Node {
        #[cfg(test)]
        self.visits.set(self.visits.get() + 1);
        &mut self.records[index as usize]
    }
}
