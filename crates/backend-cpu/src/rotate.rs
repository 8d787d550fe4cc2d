//! Rotary positions: queries and keys are turned where they lie.

use std::f64::consts::TAU;

use pulp::Arch;
use vecmill_model::{Heads, Rotary};

use crate::math::cos_sin;
use crate::threads::vectorised;

/// Rows of one task.
const ROWS: usize = 64;

/// What all tasks of one call share.
#[derive(Debug)]
pub(crate) struct Rotation {
    arch: Arch,
    heads: Heads,
    rotary: Rotary,
    /// In turns per position, where they are those of all sequences.
    turns: Option<Vec<f64>>,
}

/// Some rows of a sequence.
#[derive(Debug)]
pub(crate) struct RowRange<'a> {
    rows: &'a mut [f32],
    /// Position of the first.
    first: u32,
    /// Tokens of the sequence.
    tokens: usize,
}

impl Rotation {
    pub(crate) fn new(arch: Arch, heads: Heads, rotary: Rotary) -> Self {
        let turns = (!rotary.depends_on_length()).then(|| turns(rotary, 0));
        Self { arch, heads, rotary, turns }
    }

    /// The tasks of a batch, whose rows start where `starts` says.
    pub(crate) fn tasks<'a>(&self, qkv: &'a mut [f32], starts: &[u32]) -> Vec<RowRange<'a>> {
        let mut tasks = Vec::with_capacity(starts.len());
        let mut qkv = qkv;
        for pair in starts.windows(2) {
            let tokens = (pair[1] - pair[0]) as usize;
            let (rows, rest) = qkv.split_at_mut(tokens * self.heads.columns());
            qkv = rest;
            let chunks = (0u32..).step_by(ROWS).zip(rows.chunks_mut(ROWS * self.heads.columns()));
            tasks.extend(chunks.map(|(first, rows)| RowRange { rows, first, tokens }));
        }
        tasks
    }

    /// Computes one task.
    pub(crate) fn run(&self, task: RowRange<'_>) {
        let RowRange { rows, first, tokens } = task;
        let own = self.turns.is_none().then(|| turns(self.rotary, tokens));
        let Some(turns) = self.turns.as_ref().or(own.as_ref()) else { return };
        let Heads { queries, keys, size } = self.heads;
        let (mut cos, mut sin) = (vec![0.0; turns.len()], vec![0.0; turns.len()]);
        vectorised(
            self.arch,
            #[inline(always)]
            || {
                for (position, row) in (first..).zip(rows.chunks_exact_mut(self.heads.columns())) {
                    for ((cos, sin), turns) in cos.iter_mut().zip(&mut sin).zip(turns) {
                        (*cos, *sin) = cos_sin(f64::from(position) * turns);
                    }
                    for head in row.chunks_exact_mut(size).take(queries + keys) {
                        turn(head, &cos, &sin);
                    }
                }
            },
        );
    }
}

fn turns(rotary: Rotary, tokens: usize) -> Vec<f64> {
    rotary.frequencies(tokens).into_iter().map(|frequency| f64::from(frequency) / TAU).collect()
}

/// Turns the pairs of one head.
#[inline(always)]
fn turn(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (left, right) = head.split_at_mut(cos.len());
    for (((x, y), &cos), &sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
        (*x, *y) = (x.mul_add(cos, -(*y * sin)), y.mul_add(cos, *x * sin));
    }
}
