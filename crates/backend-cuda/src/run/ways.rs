//! Which way a linear layer goes: our own kernels', or cuBLASLt's.
//!
//! - [`Ways`] remembers what was measured while the backend was tuned, per size.
//!
//! The choice behind it: which is faster depends on the card, its clocks and the library's version,
//! by a third either way; a few launches tell. What was measured at a power of two rows counts for
//! all counts down to the power before. Sizes that were never measured go by the rule in
//! `gemm/hopper`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vecmill_model::Activation;

/// What a linear layer is followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Then {
    Activation(Activation),
    /// The residual's sum, and its normalisation.
    Norm,
}

/// Sizes that share a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Size {
    octave: usize,
    inputs: usize,
    outputs: usize,
    then: Then,
}

/// How to compute a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Library,
    Own,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    tuning: AtomicBool,
    faster: Mutex<HashMap<Size, Way>>,
}

impl Size {
    pub(super) fn new(rows: usize, (inputs, outputs): (usize, usize), then: Then) -> Self {
        Self { octave: rows.next_power_of_two(), inputs, outputs, then }
    }
}

impl Ways {
    /// Whether ways are to be measured when a size comes up for the first time.
    pub(super) fn tuning(&self) -> bool {
        self.tuning.load(Ordering::Relaxed)
    }

    pub(super) fn tune(&self, on: bool) {
        self.tuning.store(on, Ordering::Relaxed);
    }

    /// The faster way, if it was measured.
    fn known(&self, size: Size) -> Option<Way> {
        self.faster().get(&size).copied()
    }

    /// Whether our own kernel's way is to be gone: as was measured, or is now, while ways are; otherwise
    /// by `rule`. `measure` gives the times of the library's way and of ours.
    pub(super) fn is_own<E>(
        &self,
        size: Size,
        rule: impl FnOnce() -> bool,
        measure: impl FnOnce() -> Result<[Duration; 2], E>,
    ) -> Result<bool, E> {
        if self.tuning() && self.known(size).is_none() {
            let [library, own] = measure()?;
            self.keep(size, library, own);
        }
        Ok(self.known(size).map_or_else(rule, |way| way == Way::Own))
    }

    /// Keeps the faster of two times; the library's, where both are the same.
    fn keep(&self, size: Size, library: Duration, own: Duration) {
        let way = if own < library { Way::Own } else { Way::Library };
        self.faster().insert(size, way);
    }

    fn faster(&self) -> MutexGuard<'_, HashMap<Size, Way>> {
        self.faster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(rows: usize) -> Size {
        Size::new(rows, (384, 1536), Then::Activation(Activation::Gelu))
    }

    #[test]
    fn a_measured_size_stands_for_its_octave() {
        let ways = Ways::default();
        let (short, long) = (Duration::from_micros(9), Duration::from_micros(10));
        ways.keep(size(1024), long, short);
        ways.keep(size(2048), short, long);
        ways.keep(size(4096), short, short);
        assert_eq!(ways.known(size(513)), Some(Way::Own));
        assert_eq!(ways.known(Size { then: Then::Norm, ..size(1024) }), None);
        assert_eq!(ways.known(size(1025)), Some(Way::Library));
        assert_eq!(ways.known(size(4000)), Some(Way::Library));
        assert_eq!(ways.known(size(512)), None);
    }

    #[test]
    fn ways_are_measured_once_while_that_is_wanted_and_go_by_the_rule_otherwise() {
        let ways = Ways::default();
        let (short, long) = (Duration::from_micros(9), Duration::from_micros(10));
        let never = || Err("measured");
        assert_eq!(ways.is_own(size(1024), || true, never), Ok(true));
        ways.tune(true);
        assert_eq!(ways.is_own(size(1024), || true, never), Err("measured"));
        assert_eq!(ways.is_own(size(1024), || true, || Ok::<_, &str>([short, long])), Ok(false));
        assert_eq!(ways.is_own(size(1024), || true, never), Ok(false));
        ways.tune(false);
        assert_eq!(ways.is_own(size(1024), || true, never), Ok(false));
        assert_eq!(ways.is_own(size(2048), || true, never), Ok(true));
    }
}
