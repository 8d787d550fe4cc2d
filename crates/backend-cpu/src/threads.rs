//! How work reaches processors: views of a slab, dealt out to threads, as vector code.
//!
//! - [`views`] are disjoint parts of a batch's memory, and [`strips`] of a matrix.
//! - [`for_each`] takes tasks one by one from a shared list, so that threads that finish early take more;
//!   each thread owns one part of the workspace. All outputs are disjoint `&mut` slices that travel
//!   inside the tasks: no thread can write where another does.
//! - [`vectorised`] compiles plain loops for the processor that is there.

use std::ops::Range;
use std::sync::Mutex;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use vecmill_encoder::BackendError;
use vecmill_memory::HostBlock;

const FLOAT: usize = size_of::<f32>();

/// The slab's memory at each of the ranges of bytes, which must not overlap: that they don't is the
/// plan's promise, and it is checked here.
pub(crate) fn views<'a, const N: usize>(
    slab: &'a mut HostBlock,
    operation: &'static str,
    places: [Range<usize>; N],
) -> Result<[&'a mut [f32]; N], BackendError> {
    let floats: &mut [f32] = bytemuck::try_cast_slice_mut(slab.bytes_mut())
        .map_err(|error| BackendError { operation, reason: error.to_string() })?;
    let length = floats.len();
    let places = places.map(|Range { start, end }| start / FLOAT..end / FLOAT);
    floats.get_disjoint_mut(places).map_err(|error| BackendError {
        operation,
        reason: format!("its operands do not fit a slab of {length} elements: {error}"),
    })
}

/// The slab's memory at one range of bytes.
pub(crate) fn view<'a>(
    slab: &'a mut HostBlock,
    operation: &'static str,
    bytes: Range<usize>,
) -> Result<&'a mut [f32], BackendError> {
    let nothing = 0..0;
    views(slab, operation, [bytes, nothing]).map(|[view, _]| view)
}

/// Indices are stored in the same 4-byte elements.
pub(crate) fn as_indices(elements: &[f32]) -> &[u32] {
    bytemuck::cast_slice(elements)
}

/// Runs `work` on every task, on as many `threads` of the pool that calls, each with an equal part
/// of `workspace`.
pub(crate) fn for_each<T: Send>(
    tasks: Vec<T>,
    workspace: &mut [f32],
    threads: usize,
    work: impl Fn(T, &mut [f32]) + Sync,
) {
    let scratch = workspace.len() / threads.max(1);
    if tasks.len() == 1 || threads <= 1 {
        // Waking other threads would take longer than most single tasks.
        return tasks.into_iter().for_each(|task| work(task, &mut workspace[..scratch]));
    }
    let parts = split(workspace, scratch, threads);
    let tasks = Mutex::new(tasks.into_iter());
    parts.into_par_iter().for_each(|scratch| {
        loop {
            // A poisoned lock means that another thread's task panicked: rayon passes that on.
            let Some(task) = tasks.lock().ok().and_then(|mut tasks| tasks.next()) else { break };
            work(task, scratch);
        }
    });
}

/// The first `count` parts of `size`, which may be zero.
fn split(mut workspace: &mut [f32], size: usize, count: usize) -> Vec<&mut [f32]> {
    let mut parts = Vec::with_capacity(count);
    for _ in 0..count {
        let (part, rest) = workspace.split_at_mut(size);
        parts.push(part);
        workspace = rest;
    }
    parts
}

/// Cuts consecutive rows of `columns` into vertical strips `width` wide (the last may be narrower):
/// for each strip its first column and, row by row, its slices.
pub(crate) fn strips<'a>(
    rows: &'a mut [f32],
    columns: usize,
    width: usize,
) -> Vec<(usize, Vec<&'a mut [f32]>)> {
    let mut strips: Vec<(usize, Vec<&'a mut [f32]>)> =
        (0..columns).step_by(width.max(1)).map(|first| (first, Vec::new())).collect();
    for row in rows.chunks_exact_mut(columns.max(1)) {
        for (strip, slice) in strips.iter_mut().zip(row.chunks_mut(width.max(1))) {
            strip.1.push(slice);
        }
    }
    strips
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let mut counts = vec![0u8; 1000];
        let mut workspace = vec![0.0; 4 * 8];
        for_each(counts.iter_mut().collect(), &mut workspace, 4, |count, scratch| {
            assert_eq!(scratch.len(), 8);
            *count += 1;
        });
        assert!(counts.iter().all(|&count| count == 1));
    }

    #[test]
    fn strips_cover_every_element_once() {
        let mut rows: Vec<f32> = vec![0.0; 3 * 10];
        let strips = strips(&mut rows, 10, 4);
        let shapes: Vec<_> =
            strips.iter().map(|(first, s)| (*first, s.len(), s[0].len())).collect();
        assert_eq!(shapes, [(0, 3, 4), (4, 3, 4), (8, 3, 2)]);
        strips.into_iter().flat_map(|(_, rows)| rows).flatten().for_each(|value| *value += 1.0);
        assert!(rows.iter().all(|&value| value == 1.0));
    }
}
