//! Static memory plans: from lifetimes to offsets.
//!
//! The method is greedy by size (Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net
//! Inference", arXiv:2001.03288): buffers are placed from the largest to the smallest, each at the
//! lowest offset where it overlaps no placed buffer that lives at the same time.

use std::ops::RangeInclusive;

use crate::budget::GRANULE;

/// Every offset is a multiple of this many bytes: a cache line, the widest vector register, and
/// what GPU copies want.
pub const ALIGNMENT: usize = 64;

/// Names a buffer of a [`Planner`] and of the [`Plan`] made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferId(usize);

#[derive(Debug, Clone)]
struct Request {
    bytes: usize,
    steps: RangeInclusive<usize>,
}

impl Request {
    fn lives_with(&self, other: &Self) -> bool {
        self.steps.start() <= other.steps.end() && other.steps.start() <= self.steps.end()
    }
}

/// Collects the buffers that a batch needs and the steps during which each is alive.
#[derive(Debug, Default)]
pub struct Planner {
    requests: Vec<Request>,
}

impl Planner {
    /// A planner without buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a buffer of `bytes`, alive from the first to the last of `steps`, both included.
    ///
    /// Steps are the caller's own count, for example the index of the operation.
    pub fn buffer(&mut self, bytes: usize, steps: RangeInclusive<usize>) -> BufferId {
        self.requests.push(Request { bytes: bytes.next_multiple_of(ALIGNMENT), steps });
        BufferId(self.requests.len() - 1)
    }

    /// Prolongs a buffer's life to `step`, if it ends earlier.
    pub fn keep_until(&mut self, buffer: BufferId, step: usize) {
        let steps = &mut self.requests[buffer.0].steps;
        *steps = *steps.start()..=step.max(*steps.end());
    }

    /// Makes a buffer larger, if it has less than `bytes`.
    pub fn enlarge(&mut self, buffer: BufferId, bytes: usize) {
        let request = &mut self.requests[buffer.0];
        request.bytes = request.bytes.max(bytes.next_multiple_of(ALIGNMENT));
    }

    /// Places all buffers.
    pub fn plan(&self) -> Plan {
        let mut order: Vec<usize> = (0..self.requests.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(self.requests[index].bytes));
        let mut offsets = vec![0; self.requests.len()];
        let mut placed: Vec<usize> = Vec::with_capacity(order.len()); // by ascending offset
        let mut peak = 0;
        for index in order {
            let request = &self.requests[index];
            let offset = self.lowest_gap(request, &placed, &offsets);
            offsets[index] = offset;
            peak = peak.max(offset + request.bytes);
            let position = placed.partition_point(|&other| offsets[other] <= offset);
            placed.insert(position, index);
        }
        let placed = |(request, offset): (&Request, usize)| PlannedBuffer {
            offset,
            bytes: request.bytes,
            steps: request.steps.clone(),
        };
        Plan { buffers: self.requests.iter().zip(offsets).map(placed).collect(), peak }
    }

    /// Whether `plan`, made for the same buffers at other sizes, has room for each of these.
    ///
    /// A plan holds for all sizes up to those that it was made for: what was apart stays apart.
    pub fn fits(&self, plan: &Plan) -> bool {
        let mut pairs = self.requests.iter().zip(&plan.buffers);
        self.requests.len() == plan.buffers.len()
            && pairs.all(|(request, planned)| request.bytes <= planned.bytes)
    }

    fn lowest_gap(&self, request: &Request, placed: &[usize], offsets: &[usize]) -> usize {
        let mut candidate = 0;
        for &other in placed.iter().filter(|&&other| self.requests[other].lives_with(request)) {
            if offsets[other] >= candidate + request.bytes {
                break;
            }
            candidate = candidate.max(offsets[other] + self.requests[other].bytes);
        }
        candidate
    }
}

/// The offset of every buffer in one slab, and the slab's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    buffers: Vec<PlannedBuffer>,
    peak: usize,
}

/// A buffer with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBuffer {
    /// Its distance in bytes from the start of the slab.
    pub offset: usize,
    /// Its size, rounded up to [`ALIGNMENT`].
    pub bytes: usize,
    /// The steps during which it is alive.
    pub steps: RangeInclusive<usize>,
}

impl Plan {
    /// Pools take and hold memory in multiples of this many bytes.
    pub const GRANULE: usize = GRANULE;

    /// The buffer's distance in bytes from the start of the slab, a multiple of [`ALIGNMENT`].
    pub fn offset(&self, buffer: BufferId) -> usize {
        self.buffers[buffer.0].offset
    }

    /// All buffers, in the order in which they were added to the planner.
    pub fn buffers(&self) -> &[PlannedBuffer] {
        &self.buffers
    }

    /// The bytes that the slab must have: exactly the end of its furthest buffer.
    pub fn peak_bytes(&self) -> usize {
        self.peak
    }

    /// What the slab takes of a pool's budget at least: whole granules.
    pub fn slab_bytes(&self) -> usize {
        self.peak.next_multiple_of(Self::GRANULE).max(Self::GRANULE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_buffer_takes_the_place_of_one_that_has_ended() {
        let mut planner = Planner::new();
        let first = planner.buffer(100, 0..=1);
        let second = planner.buffer(128, 2..=3);
        let plan = planner.plan();
        assert_eq!((plan.offset(first), plan.offset(second), plan.peak_bytes()), (0, 0, 128));
    }

    #[test]
    fn keeping_a_buffer_longer_moves_the_next_one() {
        let mut planner = Planner::new();
        let first = planner.buffer(64, 0..=1);
        let second = planner.buffer(64, 2..=3);
        planner.keep_until(first, 2);
        let plan = planner.plan();
        assert_ne!(plan.offset(first), plan.offset(second));
        assert_eq!(plan.peak_bytes(), 128);
    }

    #[test]
    fn enlarging_a_buffer_never_makes_it_smaller() {
        let mut planner = Planner::new();
        let buffer = planner.buffer(0, 0..=0);
        planner.enlarge(buffer, 200);
        planner.enlarge(buffer, 100);
        assert_eq!(planner.plan().peak_bytes(), 256);
    }

    #[test]
    fn a_plan_holds_for_smaller_buffers_only() {
        let planner = |sizes: [usize; 2]| {
            let mut planner = Planner::new();
            for bytes in sizes {
                planner.buffer(bytes, 0..=1);
            }
            planner
        };
        let plan = planner([256, 512]).plan();
        assert!(planner([256, 512]).fits(&plan) && planner([64, 0]).fits(&plan));
        assert!(!planner([257, 64]).fits(&plan), "in all smaller, but not each");
        assert!(!Planner::new().fits(&plan), "other buffers");
    }

    fn requests() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
        prop::collection::vec((0usize..5000, 0usize..30, 0usize..10), 1..60)
    }

    proptest! {
        #[test]
        fn buffers_alive_together_never_overlap(requests in requests()) {
            let mut planner = Planner::new();
            let ids: Vec<_> = requests
                .iter()
                .map(|&(bytes, start, length)| planner.buffer(bytes, start..=start + length))
                .collect();
            let plan = planner.plan();
            for (a, one) in requests.iter().enumerate() {
                let one_end = plan.offset(ids[a]) + one.0;
                prop_assert_eq!(plan.offset(ids[a]) % ALIGNMENT, 0);
                prop_assert!(one_end <= plan.peak_bytes());
                for (b, other) in requests.iter().enumerate().skip(a + 1) {
                    let together = one.1 <= other.1 + other.2 && other.1 <= one.1 + one.2;
                    let other_end = plan.offset(ids[b]) + other.0;
                    let apart = one_end <= plan.offset(ids[b]) || other_end <= plan.offset(ids[a]);
                    prop_assert!(!together || apart || one.0 == 0 || other.0 == 0);
                }
            }
        }

        #[test]
        fn the_peak_is_between_the_busiest_step_and_the_sum(requests in requests()) {
            let mut planner = Planner::new();
            for &(bytes, start, length) in &requests {
                planner.buffer(bytes, start..=start + length);
            }
            let rounded = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
            let busiest = (0..40)
                .map(|step| requests.iter().filter(|r| r.1 <= step && step <= r.1 + r.2)
                    .map(|r| rounded(r.0)).sum::<usize>())
                .max().unwrap_or(0);
            let sum: usize = requests.iter().map(|r| rounded(r.0)).sum();
            let peak = planner.plan().peak_bytes();
            prop_assert!(busiest <= peak && peak <= sum);
        }
    }
}
