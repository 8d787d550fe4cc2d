//! Small batches as graphs: captured the second time that a shape meets a slab, replayed from then.
//!
//! The choice behind it: a batch of one short text is a hundred kernels that take the device less
//! time than the host takes to launch them one by one. The pool's addresses are stable, so what was
//! captured on a slab stays right. The first time runs without capture, because it compiles
//! kernels and chooses algorithms.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use vecmill_encoder::RepeatKey;

use crate::driver::CapturedGraph;

/// Graphs that are kept; the one that was not used for longest makes way.
const CAPACITY: usize = 128;

/// What makes two runs the same: the steps, and the slab's address.
type Key = (RepeatKey, u64);

#[derive(Debug, Default)]
pub(crate) struct Graphs(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    clock: u64,
    known: HashMap<Key, Entry>,
}

#[derive(Debug)]
struct Entry {
    used: u64,
    graph: Option<CapturedGraph>,
}

/// What to do with a run.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Run it step by step.
    Step,
    /// Capture it, and [put](Graphs::put) what comes of it.
    Capture,
    /// Launch this, and put it back.
    Replay(CapturedGraph),
}

impl Graphs {
    pub(crate) fn turn(&self, key: RepeatKey, address: u64) -> Turn {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { clock, known } = &mut *state;
        *clock += 1;
        if let Some(entry) = known.get_mut(&(key, address)) {
            entry.used = *clock;
            return entry.graph.take().map_or(Turn::Capture, Turn::Replay);
        }
        if known.len() >= CAPACITY
            && let Some(oldest) =
                known.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key)
        {
            known.remove(&oldest);
        }
        known.insert((key, address), Entry { used: *clock, graph: None });
        Turn::Step
    }

    pub(crate) fn put(&self, key: RepeatKey, address: u64, graph: CapturedGraph) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = state.known.get_mut(&(key, address)) {
            entry.graph = Some(graph);
        }
    }
}

#[cfg(test)]
mod tests {
    use vecmill_encoder::Shape;

    use super::*;

    fn key(tokens: usize) -> RepeatKey {
        RepeatKey { programs: 0, shape: Shape { tokens, sequences: 1, longest: tokens } }
    }

    #[test]
    fn the_second_time_is_captured_and_old_ones_make_way() {
        let graphs = Graphs::default();
        assert!(matches!(graphs.turn(key(1), 7), Turn::Step));
        assert!(matches!(graphs.turn(key(1), 8), Turn::Step), "another slab is another run");
        let other = RepeatKey { programs: 1, ..key(1) };
        assert!(matches!(graphs.turn(other, 7), Turn::Step), "another program is another run");
        assert!(matches!(graphs.turn(key(1), 7), Turn::Capture));
        for tokens in 2..2 + CAPACITY {
            graphs.turn(key(tokens), 7);
        }
        assert!(matches!(graphs.turn(key(1), 7), Turn::Step), "it was forgotten");
    }
}
