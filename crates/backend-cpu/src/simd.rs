//! Running plain loops as vector code for the processor that is there.

use pulp::{Arch, Simd, WithSimd};

/// Runs `work` once, compiled for this processor's instruction set.
///
/// `work` must be an `#[inline(always)]` closure, and all that it calls inlined into it too: what
/// is not inlined is compiled for the baseline. That is also why this exists beside pulp's own way
/// to pass a closure: it goes through `FnOnce`, and for a closure that could be called twice the
/// compiler puts a shim in between that is never inlined.
pub(crate) fn vectorised(arch: Arch, work: impl FnMut()) {
    arch.dispatch(Loops(work));
}

struct Loops<F>(F);

impl<F: FnMut()> WithSimd for Loops<F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        (self.0)();
    }
}
