//! The free lists: 32 per octave of sizes, and the bitmaps that say which hold a block.
//!
//! Sizes below 32 granules have a list each; a list above holds sizes that differ by less than one
//! thirty-second. The list for a request is thus two "lowest bit set" away, whatever the number of
//! holes. The lists' state is under 4 KiB and stays in the first-level cache.

use super::nodes::{EDGE, Nodes};

const LISTS_PER_OCTAVE: usize = 32;

/// The exact sizes below 32 share a row; then each octave up to that of `u32::MAX` has one.
const ROWS: usize = 28;

/// How many blocks of a request's own list are tried when no higher list has one.
const TRIES: usize = 8;

#[derive(Debug)]
pub(super) struct Bins {
    /// The first block of each list, or the edge.
    first: [u32; ROWS * LISTS_PER_OCTAVE],
    /// For each row, the lists with blocks.
    filled: [u32; ROWS],
    /// The rows with such lists.
    filled_rows: u32,
}

/// The list in which a block of `granules` belongs.
fn list_of(granules: u32) -> usize {
    if granules < 32 {
        return granules as usize;
    }
    let octave = granules.ilog2();
    let step = (granules >> (octave - 5)) as usize % LISTS_PER_OCTAVE;
    (octave - 4) as usize * LISTS_PER_OCTAVE + step
}

/// The lowest list of which every block holds `granules`, unless that is past the last.
fn list_above(granules: u32) -> Option<usize> {
    if granules < 32 {
        return Some(granules as usize);
    }
    let step = 1 << (granules.ilog2() - 5);
    Some(list_of(granules.checked_add(step - 1)?))
}

/// The bits of `map` from `position` up.
fn from(map: u32, position: usize) -> u32 {
    map & u32::MAX.checked_shl(position as u32).unwrap_or(0)
}

impl Bins {
    pub(super) fn new() -> Self {
        Self { first: [EDGE; ROWS * LISTS_PER_OCTAVE], filled: [0; ROWS], filled_rows: 0 }
    }

    /// A free block of at least `granules`.
    ///
    /// Takes the first block of the lowest list whose blocks are all large enough. When there is
    /// none, the list that `granules` itself belongs in may still have a block that is: the first
    /// few are tried, so that a hole made to measure is found.
    pub(super) fn find(&self, nodes: &Nodes, granules: u32) -> Option<u32> {
        if let Some(list) = list_above(granules).and_then(|list| self.lowest_filled(list)) {
            return Some(self.first[list]);
        }
        let mut blocks = self.blocks(nodes, list_of(granules)).take(TRIES);
        blocks.find(|&index| nodes[index].granules >= granules)
    }

    /// The size of the largest free block: in the highest list with blocks, all of which it visits.
    pub(super) fn largest(&self, nodes: &Nodes) -> u32 {
        let Some(row) = self.filled_rows.checked_ilog2() else { return 0 };
        let step = self.filled[row as usize].checked_ilog2().unwrap_or(0);
        let list = row as usize * LISTS_PER_OCTAVE + step as usize;
        self.blocks(nodes, list).map(|index| nodes[index].granules).max().unwrap_or(0)
    }

    /// Puts a free block at the front of its list.
    pub(super) fn insert(&mut self, nodes: &mut Nodes, index: u32) {
        let list = list_of(nodes[index].granules);
        let next = std::mem::replace(&mut self.first[list], index);
        let node = &mut nodes[index];
        (node.list_before, node.list_after) = (EDGE, next);
        if next == EDGE {
            let (row, step) = (list / LISTS_PER_OCTAVE, list % LISTS_PER_OCTAVE);
            self.filled[row] |= 1 << step;
            self.filled_rows |= 1 << row;
        } else {
            nodes[next].list_before = index;
        }
    }

    /// Takes a block out of its list.
    pub(super) fn remove(&mut self, nodes: &mut Nodes, index: u32) {
        let node = nodes[index];
        if node.list_after != EDGE {
            nodes[node.list_after].list_before = node.list_before;
        }
        if node.list_before != EDGE {
            nodes[node.list_before].list_after = node.list_after;
            return;
        }
        let list = list_of(node.granules);
        self.first[list] = node.list_after;
        if node.list_after == EDGE {
            let (row, step) = (list / LISTS_PER_OCTAVE, list % LISTS_PER_OCTAVE);
            self.filled[row] &= !(1 << step);
            if self.filled[row] == 0 {
                self.filled_rows &= !(1 << row);
            }
        }
    }

    /// Gives a block in a list another size. It moves only if that is another list's.
    pub(super) fn resize(&mut self, nodes: &mut Nodes, index: u32, granules: u32) {
        if list_of(nodes[index].granules) == list_of(granules) {
            nodes[index].granules = granules;
        } else {
            self.remove(nodes, index);
            nodes[index].granules = granules;
            self.insert(nodes, index);
        }
    }

    /// The lowest list from `list` up that has a block.
    fn lowest_filled(&self, list: usize) -> Option<usize> {
        let mut row = list / LISTS_PER_OCTAVE;
        let mut steps = from(self.filled[row], list % LISTS_PER_OCTAVE);
        if steps == 0 {
            let rows = from(self.filled_rows, row + 1);
            if rows == 0 {
                return None;
            }
            row = rows.trailing_zeros() as usize;
            steps = self.filled[row];
        }
        Some(row * LISTS_PER_OCTAVE + steps.trailing_zeros() as usize)
    }

    fn blocks<'a>(&self, nodes: &'a Nodes, list: usize) -> impl Iterator<Item = u32> + use<'a> {
        let block = |index: u32| (index != EDGE).then_some(index);
        std::iter::successors(block(self.first[list]), move |&index| block(nodes[index].list_after))
    }

    /// Every block that is in a list, after checks that it's the right one; for tests.
    #[cfg(test)]
    pub(super) fn all(&self, nodes: &Nodes) -> Vec<u32> {
        let mut all = Vec::new();
        for (list, &first) in self.first.iter().enumerate() {
            let (row, step) = (list / LISTS_PER_OCTAVE, list % LISTS_PER_OCTAVE);
            assert_eq!(self.filled[row] >> step & 1 == 1, first != EDGE, "list {list}");
            assert_eq!(self.filled_rows >> row & 1 == 1, self.filled[row] != 0, "row {row}");
            let mut before = EDGE;
            for index in self.blocks(nodes, list) {
                assert_eq!(list_of(nodes[index].granules), list);
                assert_eq!(nodes[index].list_before, before);
                before = index;
                all.push(index);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_ascend_with_sizes_and_end_with_the_last() {
        let mut granules: u32 = 1;
        while let Some(next) = granules.checked_add(granules / 100 + 1) {
            assert!(list_of(granules) <= list_of(next));
            granules = next;
        }
        assert_eq!(list_of(u32::MAX), ROWS * LISTS_PER_OCTAVE - 1);
    }

    #[test]
    fn every_block_of_the_list_above_holds_the_request() {
        for octave in 0..32 {
            for offset in [0, 1, 2, 3, 1 << 4, (1 << octave) / 3, (1u32 << octave) - 1] {
                let granules = (1u32 << octave).saturating_add(offset);
                let Some(list) = list_above(granules) else {
                    assert_eq!(list_of(granules), ROWS * LISTS_PER_OCTAVE - 1);
                    continue;
                };
                assert!(list_of(granules - 1) < list, "{granules}");
                assert!(list - list_of(granules) <= 1, "{granules}");
            }
        }
    }
}
