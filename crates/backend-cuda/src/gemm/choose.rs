//! Which kernel computes a product, where only time depends on it: our own, or cuBLASLt's; and which of the
//! library's algorithms. What memory depends on is decided in `lower`.
//!
//! - [`Measured`] remembers whose kernel was faster, per size; [`own_pays`] and [`own_norm_pays`] are the
//!   rules for sizes that were never measured.
//! - [`Algorithms`] remembers the library's algorithm for each kind of product ([`Key`]); [`valid_in`]
//!   says which count.
//!
//! The choice behind it: which is faster depends on the card, its clocks and the library's version,
//! by a third either way; a few launches tell. What was measured at a power of two rows counts for
//! all counts down to the power before. Nothing of a device is here, so that what is remembered is
//! tested anywhere.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vecmill_model::Activation;

use super::{Format, Linear, RowRange, fusable};
use crate::driver::cublaslt::Function;

/// Rows from which on rules are others.
pub(super) const FEW_ROWS: usize = 2048;
pub(super) const MANY_ROWS: usize = 8192;
pub(super) const TALL_ROWS: usize = 16_384;

/// What a linear layer is followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Then {
    Activation(Activation),
    /// The residual's sum, and its normalisation.
    Norm,
}

/// Sizes that share a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Size {
    octave: usize,
    inputs: usize,
    outputs: usize,
    then: Then,
}

/// Whose kernel computes a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KernelChoice {
    Library,
    Own,
}

/// What was measured, while the backend was tuned, per size.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    tuning: AtomicBool,
    faster: Mutex<HashMap<Size, KernelChoice>>,
}

impl Size {
    pub(crate) fn new(rows: usize, (inputs, outputs): (usize, usize), then: Then) -> Self {
        Self { octave: rows.next_power_of_two(), inputs, outputs, then }
    }
}

impl Measured {
    /// Whether both are to be measured when a size comes up for the first time.
    pub(crate) fn tuning(&self) -> bool {
        self.tuning.load(Ordering::Relaxed)
    }

    pub(crate) fn tune(&self, on: bool) {
        self.tuning.store(on, Ordering::Relaxed);
    }

    /// The faster one, if it was measured.
    fn known(&self, size: Size) -> Option<KernelChoice> {
        self.faster().get(&size).copied()
    }

    /// Whether our own kernel is to be used: as was measured, or is now, while the backend is tuned;
    /// otherwise by `rule`. `measure` gives the times of the library's and of ours.
    pub(crate) fn is_own<E>(
        &self,
        size: Size,
        rule: impl FnOnce() -> bool,
        measure: impl FnOnce() -> Result<[Duration; 2], E>,
    ) -> Result<bool, E> {
        if self.tuning() && self.known(size).is_none() {
            let [library, own] = measure()?;
            self.keep(size, library, own);
        }
        Ok(self.known(size).map_or_else(rule, |choice| choice == KernelChoice::Own))
    }

    /// Keeps the faster of two times; the library's, where both are the same.
    fn keep(&self, size: Size, library: Duration, own: Duration) {
        let choice = if own < library { KernelChoice::Own } else { KernelChoice::Library };
        self.faster().insert(size, choice);
    }

    fn faster(&self) -> MutexGuard<'_, HashMap<Size, KernelChoice>> {
        self.faster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether our own kernel is probably the better choice, where nobody has measured it: as it was on an H200
/// with layers of 384 to 1024 columns.
pub(crate) fn own_pays(rows: usize, inputs: usize, outputs: usize, activation: Activation) -> bool {
    // Tiles of 128 x 192 leave most multiprocessors idle where rows are few.
    if rows < FEW_ROWS {
        return false;
    }
    match activation {
        // With sums of few terms the output counts most, whose stores ours hides behind
        // products; with many, cuBLASLt's products are faster.
        Activation::Identity | Activation::Relu => {
            inputs <= 768 || inputs == 1024 && outputs > 1024 && rows >= MANY_ROWS
        }
        // These cost cuBLASLt another pass over the output.
        Activation::Gelu | Activation::GeluTanh | Activation::Silu | Activation::Tanh => true,
    }
}

/// Whether a product, its residual and its norm are probably faster in one launch, where nobody has
/// measured it.
pub(crate) fn own_norm_pays(rows: usize, outputs: usize) -> bool {
    // In pairs of blocks it saves a launch where rows are few and passes over memory where many;
    // in eights it leaves multiprocessors idle where rows are few.
    outputs <= 384 || rows >= MANY_ROWS
}

/// The same for all counts of rows between which none of these rules, nor of those of
/// `hopper/variant` and `hopper/deferred`, tells a difference.
pub(crate) fn row_class(rows: usize) -> usize {
    [FEW_ROWS, MANY_ROWS, TALL_ROWS].iter().filter(|&&least| rows >= least).count()
}

/// Products that share an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    format: Format,
    range: RowRange,
    inputs: usize,
    outputs: usize,
    bias: bool,
    /// What the library is asked to apply first.
    function: Function,
}

impl Key {
    pub(super) fn of(linear: &Linear<'_>) -> Self {
        Self {
            format: linear.format,
            range: RowRange::of(linear.rows),
            inputs: linear.inputs,
            outputs: linear.outputs,
            bias: linear.bias.is_some(),
            function: fusable(linear.activation, linear.format),
        }
    }
}

/// An algorithm of the library for each kind of product that there was.
#[derive(Debug)]
pub(super) struct Algorithms<C>(HashMap<Key, C>);

impl<C> Default for Algorithms<C> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<C: Copy> Algorithms<C> {
    /// What was chosen before, or else now. A failure to choose is not remembered.
    pub(super) fn get_or_choose<E>(
        &mut self,
        key: Key,
        choose: impl FnOnce() -> Result<C, E>,
    ) -> Result<C, E> {
        if let Some(choice) = self.0.get(&key) {
            return Ok(*choice);
        }
        let choice = choose()?;
        self.keep(key, choice);
        Ok(choice)
    }

    /// How many kinds there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Replaces what was chosen before.
    pub(super) fn keep(&mut self, key: Key, choice: C) {
        self.0.insert(key, choice);
    }
}

/// What is proposed for the most rows of `range` and holds for the fewest, too, in its order.
pub(super) fn valid_in<C, E>(
    range: RowRange,
    propose: impl FnOnce(usize) -> Result<Vec<C>, E>,
    mut holds: impl FnMut(usize, &C) -> Result<bool, E>,
) -> Result<Vec<C>, E> {
    let mut valid = Vec::new();
    for candidate in propose(range.most())? {
        if holds(range.fewest(), &candidate)? {
            valid.push(candidate);
        }
    }
    Ok(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(rows: usize) -> Size {
        Size::new(rows, (384, 1536), Then::Activation(Activation::Gelu))
    }

    #[test]
    fn a_measured_size_stands_for_its_octave() {
        let measured = Measured::default();
        let (short, long) = (Duration::from_micros(9), Duration::from_micros(10));
        measured.keep(size(1024), long, short);
        measured.keep(size(2048), short, long);
        measured.keep(size(4096), short, short);
        assert_eq!(measured.known(size(513)), Some(KernelChoice::Own));
        assert_eq!(measured.known(Size { then: Then::Norm, ..size(1024) }), None);
        assert_eq!(measured.known(size(1025)), Some(KernelChoice::Library));
        assert_eq!(measured.known(size(4000)), Some(KernelChoice::Library));
        assert_eq!(measured.known(size(512)), None);
    }

    #[test]
    fn sizes_are_measured_once_while_that_is_wanted_and_go_by_the_rule_otherwise() {
        let measured = Measured::default();
        let (short, long) = (Duration::from_micros(9), Duration::from_micros(10));
        let never = || Err("measured");
        assert_eq!(measured.is_own(size(1024), || true, never), Ok(true));
        measured.tune(true);
        assert_eq!(measured.is_own(size(1024), || true, never), Err("measured"));
        assert_eq!(
            measured.is_own(size(1024), || true, || Ok::<_, &str>([short, long])),
            Ok(false)
        );
        assert_eq!(measured.is_own(size(1024), || true, never), Ok(false));
        measured.tune(false);
        assert_eq!(measured.is_own(size(1024), || true, never), Ok(false));
        assert_eq!(measured.is_own(size(2048), || true, never), Ok(true));
    }

    fn key(rows: usize, function: Function) -> Key {
        let (format, range) = (Format::F16, RowRange::of(rows));
        let (inputs, outputs, bias) = (384, 1536, true);
        Key { format, range, inputs, outputs, bias, function }
    }

    #[test]
    fn a_range_is_asked_about_once() {
        let mut algorithms = Algorithms::default();
        let mut asked = 0;
        for rows in [113, 120, 117, 121, 128, 113] {
            let choice = algorithms.get_or_choose(key(rows, Function::Identity), || {
                asked += 1;
                Ok::<_, ()>(asked)
            });
            assert_eq!(choice, Ok(if rows <= 120 { 1 } else { 2 }), "{rows} rows");
        }
    }

    #[test]
    fn functions_are_told_apart_and_failures_forgotten() {
        let mut algorithms = Algorithms::default();
        algorithms.keep(key(5, Function::Relu), 7);
        let identity = key(5, Function::Identity);
        assert_eq!(algorithms.get_or_choose(identity, || Err("busy")), Err("busy"));
        assert_eq!(algorithms.get_or_choose(identity, || Ok::<_, &str>(8)), Ok(8));
        assert_eq!(algorithms.get_or_choose(key(5, Function::Relu), || Err("busy")), Ok(7));
    }

    #[test]
    fn tuning_replaces_an_estimate() {
        let mut algorithms = Algorithms::default();
        let key = key(100, Function::Identity);
        algorithms.keep(key, 1);
        algorithms.keep(key, 2);
        assert_eq!(algorithms.get_or_choose(key, || Ok::<_, ()>(3)), Ok(2));
    }

    #[test]
    fn an_algorithm_must_hold_for_both_ends() {
        let range = RowRange::of(1000);
        let propose = |rows| {
            assert_eq!(rows, 1024);
            Ok::<_, ()>(vec![1, 2, 3, 4])
        };
        let holds = |rows, candidate: &i32| {
            assert_eq!(rows, 961);
            Ok(candidate % 2 == 0)
        };
        assert_eq!(valid_in(range, propose, holds), Ok(vec![2, 4]));
        assert_eq!(valid_in(range, |_| Err("lost"), |_, _: &i32| Ok(true)), Err("lost"));
        assert_eq!(valid_in(range, |_| Ok(vec![1]), |_, _| Err("lost")), Err("lost"));
    }

    #[test]
    fn short_batches_and_long_sums_without_activation_are_left_to_the_library() {
        use Activation::{Gelu, Identity, Relu};
        assert!(!own_pays(2047, 384, 1536, Gelu));
        assert!(own_pays(2048, 4096, 1024, Gelu));
        assert!(own_pays(2048, 768, 2304, Identity));
        assert!(!own_pays(1 << 17, 1536, 384, Identity));
        assert!(own_pays(8192, 1024, 3072, Relu) && !own_pays(8192, 1024, 1024, Relu));
    }
}
