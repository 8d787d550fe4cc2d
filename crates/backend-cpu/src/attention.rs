//! Attention within each sequence, without padding.
//!
//! Both products, Q·Kᵀ and P·V, go through the packed kernel of [`crate::matmul`]: keys and values
//! of one head are packed once and meet the queries that see them, 6 at a time, so the scores of
//! only 6 rows exist at any moment and stay in the first-level cache. What lies outside the window of
//! all six is not computed.

use std::ops::Range;

use pulp::Arch;
use vecmill_encoder::{BackendError, RegionWriter, Stored, alibi_slope, biases_by_distance};
use vecmill_memory::HostBlock;
use vecmill_model::{Activation, Heads, Window};

use crate::math::softmax;
use crate::matmul::{Multiply, panel_width};
use crate::threads::vectorised;

/// Queries that are handled together: the rows of a register tile.
const QUERIES: usize = 6;

/// Sequences at least this long are dealt out head by head, shorter ones whole.
const SPLIT_HEADS_AT: usize = 64;

/// Relative position biases, by head and distance.
#[derive(Debug)]
pub(crate) struct RelativeBias {
    by_distance: Stored<HostBlock>, // [heads][2 · reach + 1]
    reach: usize,
}

impl RelativeBias {
    /// Spreads a `[buckets, heads]` table out over the distances −`reach`..=`reach`; farther ones
    /// are in the same bucket as the last.
    pub(crate) fn new(
        table: &[f32],
        heads: usize,
        reach: usize,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Self, BackendError> {
        let values = biases_by_distance(table, heads, reach);
        let by_distance = into.floats(values.len(), |place| place.copy_from_slice(&values))?;
        Ok(Self { by_distance, reach })
    }

    /// Adds to the score of each key, counted from `first` on, the bias for its distance from `query`.
    #[inline(always)]
    fn add(&self, head: usize, query: usize, first: usize, scores: &mut [f32]) {
        let width = 2 * self.reach + 1;
        let biases = &self.by_distance.floats()[head * width..][..width];
        for (key, score) in (first..).zip(scores) {
            *score += biases[(key + self.reach).saturating_sub(query).min(width - 1)];
        }
    }
}

/// What is added to scores.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bias<'a> {
    None,
    Relative(&'a RelativeBias),
    Alibi,
}

/// What all tasks of one call share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) arch: Arch,
    pub(crate) heads: Heads,
    pub(crate) window: Window,
    pub(crate) bias: Bias<'a>,
}

/// Some heads of one sequence: what one task computes.
#[derive(Debug)]
pub(crate) struct HeadRange<'q, 'o> {
    /// The sequence's rows of queries, keys and values.
    qkv: &'q [f32],
    heads: Range<usize>,
    /// The sequence's output rows, cut to these heads' columns.
    output: Vec<&'o mut [f32]>,
}

/// Floats of scratch that a task needs for sequences of at most `longest`.
pub(crate) fn scratch_floats(arch: Arch, longest: usize, head_size: usize) -> usize {
    let width = panel_width(arch);
    let (keys, size) = (longest.next_multiple_of(width), head_size.next_multiple_of(width));
    keys * head_size + longest * size + QUERIES * keys
}

/// Scratch bytes for each of `threads` to work on sequences of up to `longest`.
pub(crate) fn workspace(arch: Arch, threads: usize, longest: usize, head_size: usize) -> usize {
    threads * scratch_floats(arch, longest, head_size) * size_of::<f32>()
}

impl Attention<'_> {
    /// The tasks of a batch: every sequence whole, or head by head if it is long.
    pub(crate) fn tasks<'q, 'o>(
        &self,
        qkv: &'q [f32],
        starts: &[u32],
        output: &'o mut [f32],
    ) -> Vec<HeadRange<'q, 'o>> {
        let Heads { queries, size, .. } = self.heads;
        let (columns, hidden) = (self.heads.columns(), self.heads.outputs());
        let mut tasks = Vec::with_capacity(starts.len());
        let (mut qkv, mut output) = (qkv, output);
        for pair in starts.windows(2) {
            let length = (pair[1] - pair[0]) as usize;
            let (rows, rest) = qkv.split_at(length * columns);
            let (target, after) = output.split_at_mut(length * hidden);
            (qkv, output) = (rest, after);
            if length == 0 {
                continue;
            }
            let heads_each = if length >= SPLIT_HEADS_AT { 1 } else { queries };
            let strips = crate::threads::strips(target, hidden, heads_each * size);
            tasks.extend(strips.into_iter().map(|(first, output)| {
                let first = first / size;
                HeadRange { qkv: rows, heads: first..first + heads_each, output }
            }));
        }
        tasks
    }

    /// Computes one task.
    pub(crate) fn run(&self, task: HeadRange<'_, '_>, scratch: &mut [f32]) {
        let HeadRange { qkv, heads, mut output } = task;
        for (strip, head) in heads.enumerate() {
            let columns = strip * self.heads.size..(strip + 1) * self.heads.size;
            self.head(qkv, head, &mut output, columns, scratch);
        }
    }

    fn head(
        &self,
        qkv: &[f32],
        head: usize,
        output: &mut [&mut [f32]],
        columns: Range<usize>,
        scratch: &mut [f32],
    ) {
        let Heads { queries: heads, keys: shared, size } = self.heads;
        let (length, width) = (output.len(), panel_width(self.arch));
        let padded_keys = length.next_multiple_of(width);
        let (keys, scratch) = scratch.split_at_mut(padded_keys * size);
        let (values, scores) = scratch.split_at_mut(length * size.next_multiple_of(width));

        let part = |head: usize| {
            let first = head * size;
            qkv.chunks_exact(self.heads.columns()).map(move |row| &row[first..first + size])
        };
        let of_keys = head * shared / heads;
        pack_keys(part(heads + of_keys), width, 1.0 / root(size), keys);
        pack_values(part(heads + shared + of_keys), length, width, values);
        let queries: Vec<&[f32]> = part(head).collect();
        for (block, queries) in queries.chunks(QUERIES).enumerate() {
            let first = block * QUERIES;
            let seen = self.window.seen(first..first + queries.len(), length);
            let start = seen.start / width * width; // of whole panels
            let panels = &keys[start * size..seen.end.next_multiple_of(width) * size];
            let scores = &mut scores[..queries.len() * padded_keys];
            let mut rows: Vec<&mut [f32]> = scores.chunks_exact_mut(padded_keys).collect();
            self.multiply(queries, panels, size * width, &mut rows);
            self.weigh(head, first, start, length, &mut rows);
            let weights = seen.start - start..seen.end - start;
            let weights: Vec<&[f32]> = rows.iter().map(|row| &row[weights.clone()]).collect();
            let mut target: Vec<&mut [f32]> = output[first..first + queries.len()]
                .iter_mut()
                .map(|row| &mut row[columns.clone()])
                .collect();
            self.multiply(&weights, &values[seen.start * width..], length * width, &mut target);
        }
    }

    fn multiply(&self, rows: &[&[f32]], panels: &[f32], stride: usize, output: &mut [&mut [f32]]) {
        let activation = Activation::Identity;
        let (bias, gated) = (&[][..], false);
        self.arch.dispatch(Multiply { rows, panels, stride, bias, gated, output, activation });
    }

    /// Scores to weights, row by row: those of queries from `first` on, of keys from `start` on. What a
    /// query doesn't see has no weight.
    fn weigh(
        &self,
        head: usize,
        first: usize,
        start: usize,
        length: usize,
        rows: &mut [&mut [f32]],
    ) {
        let seen = self.window.seen(first..first + rows.len(), length);
        let slope = alibi_slope(head, self.heads.queries);
        vectorised(
            self.arch,
            #[inline(always)]
            || {
                for (query, row) in (first..).zip(rows.iter_mut()) {
                    let own = self.window.seen(query..query + 1, length);
                    row[seen.start - start..own.start - start].fill(0.0);
                    row[own.end - start..seen.end - start].fill(0.0);
                    let scores = &mut row[own.start - start..own.end - start];
                    match self.bias {
                        Bias::None => {}
                        Bias::Relative(bias) => bias.add(head, query, own.start, scores),
                        Bias::Alibi => add_distances(query, own.start, -slope, scores),
                    }
                    softmax(scores);
                }
            },
        );
    }
}

/// Adds to the score of each key, counted from `first` on, its distance from `query` times `slope`.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "distances are far below 2²⁴")]
fn add_distances(query: usize, first: usize, slope: f32, scores: &mut [f32]) {
    let nearest = first as f32 - query as f32;
    for (index, score) in (0u32..).zip(scores) {
        *score += (nearest + index as f32).abs() * slope;
    }
}

#[expect(clippy::cast_precision_loss, reason = "head sizes are small")]
fn root(head_size: usize) -> f32 {
    (head_size as f32).sqrt()
}

/// Panels of scaled keys: for each group of `width` keys, their first numbers, their second
/// numbers, ….
fn pack_keys<'a>(
    keys: impl Iterator<Item = &'a [f32]>,
    width: usize,
    scale: f32,
    panels: &mut [f32],
) {
    for (index, key) in keys.enumerate() {
        let start = index / width * width * key.len() + index % width;
        let slots = panels[start..].iter_mut().step_by(width);
        for (slot, &value) in slots.zip(key) {
            *slot = value * scale;
        }
    }
}

/// Panels of values: for each group of `width` columns, the rows' numbers there, row by row.
fn pack_values<'a>(
    values: impl Iterator<Item = &'a [f32]>,
    length: usize,
    width: usize,
    panels: &mut [f32],
) {
    for (index, value) in values.enumerate() {
        for (group, numbers) in value.chunks(width).enumerate() {
            let start = (group * length + index) * width;
            panels[start..start + numbers.len()].copy_from_slice(numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use vecmill_encoder::{LoadError, WeightPlan, load_weights};
    use vecmill_memory::{HostSource, Pool};

    use super::*;

    #[test]
    fn bias_is_looked_up_by_signed_distance() {
        // Two heads; bucket b has bias b for head 0 and 100 + b for head 1.
        let table: Vec<f32> =
            (0..32u8).flat_map(|b| [f32::from(b), 100.0 + f32::from(b)]).collect();
        let mut plan = WeightPlan::default();
        plan.place(2 * (2 * 128 + 1) * size_of::<f32>());
        let pool = Pool::new(HostSource, 2 << 20);
        let bias = load_weights::<_, _, LoadError>(&pool, &plan, |into| {
            Ok(RelativeBias::new(&table, 2, 128, into)?)
        });
        let bias = bias.unwrap();
        let mut scores = vec![0.0; 3];
        bias.add(1, 1, 0, &mut scores);
        assert_eq!(scores, [101.0, 100.0, 117.0]); // before, self, after
        let mut scores = vec![0.0; 400];
        bias.add(0, 200, 0, &mut scores);
        assert_eq!((scores[0], scores[399]), (15.0, 31.0));
        let mut scores = vec![0.0; 3];
        bias.add(1, 200, 199, &mut scores);
        assert_eq!(scores, [101.0, 100.0, 117.0], "of a window's keys alone");
    }
}
