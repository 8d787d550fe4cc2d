//! A layer's norm and its feed-forward block, where normalisations are deferred: what is written, and
//! what each reader makes of it.

use std::slice;

use super::super::reference::{self, Bounded, Matrix};
use super::super::{Backend, Failure};
use super::linear::Layer;
use super::{Stage, reference_norm};
use crate::backend::{
    Between, Buffer, Copies, FeedForward, LinearAddNorm, LinearTensors, Lower, NormTensors,
    Normalize, StackTensors,
};
use vecmill_model::Activation;

/// Tensors of a projection and of the block behind it.
struct Tensors {
    projection: LinearTensors,
    up: LinearTensors,
    down: LinearTensors,
    norms: [NormTensors; 2],
}

impl<B: Backend> Stage<'_, B> {
    /// Counts only where the backend defers normalisations of so many columns.
    pub(in crate::conformance) fn check_deferred(
        mut self,
        [count, inputs, hidden, intermediate]: [usize; 4],
        activation: Activation,
    ) -> Result<(), Failure> {
        let tensors = Tensors {
            projection: self.linear_tensors(hidden, inputs)?,
            up: self.linear_tensors(intermediate, hidden)?,
            down: self.linear_tensors(hidden, intermediate)?,
            norms: [self.norm_tensors(hidden)?, self.norm_tensors(hidden)?],
        };
        if !self.lower().defers_norm(usize::MAX, hidden) {
            return Ok(());
        }
        let norms = [self.norm(&tensors.norms[0])?, self.norm(&tensors.norms[1])?];
        let (input, x) = self.random(count, inputs)?;
        let (residual, y) = self.random(count, hidden)?;
        let attended = self.project(&tensors.projection, &norms[0], [input, residual])?;
        let (between, output) = self.run_block(&tensors, &norms, attended, activation)?;

        let projected = self.projected(&tensors.projection, &x, &y);
        let case = format!("deferred {count}×{inputs}→{hidden}→{intermediate} {activation:?}");
        let (norm, precision) = (reference_norm(&tensors.norms[0]), self.backend.precision());
        let normalised = |count| {
            let rows = projected.iter().map(move |row| norm.deferred(row, count, precision));
            rows.collect::<Vec<_>>()
        };
        let rows = normalised(hidden);
        let layer = Layer::of(slice::from_ref(&tensors.up));
        let wide = rows
            .iter()
            .flat_map(|row| layer.apply(row.iter().copied(), activation, precision, false));
        let wide: Vec<Bounded> = wide.collect();
        self.compare(&format!("{case}, between"), between, wide.clone())?;
        let layer = Layer::of(slice::from_ref(&tensors.down));
        let norm = reference_norm(&tensors.norms[1]);
        let expected = wide.chunks(intermediate).zip(&rows).flat_map(|(wide, row)| {
            let of_last = Activation::Identity;
            let down = layer.apply(wide.iter().copied(), of_last, precision, false);
            let terms = down.into_iter().zip(row);
            let sums: Vec<_> = terms.map(|(x, &y)| reference::sum(&[x, y], precision)).collect();
            norm.deferred(&sums, 0, precision).into_iter().map(|x| x.stored(precision))
        });
        let expected = expected.collect();
        self.compare(&case, output, expected)
    }

    /// A projection with its residual, deferred.
    fn project(
        &mut self,
        tensors: &LinearTensors,
        norm: &B::Norm,
        [input, residual]: [Buffer; 2],
    ) -> Result<Buffer, Failure> {
        let weights = self.linear(StackTensors::new(slice::from_ref(tensors)))?.weights;
        let output = self.buffer_of(residual.rows, residual.columns, Copies::Deferred);
        let bytes = self.lower().linear_workspace(input.rows, input.columns, output.columns);
        let workspace = self.workspace(bytes);
        let (weights, residual_norm) = (&weights, None);
        let op = LinearAddNorm { input, weights, residual, residual_norm, norm, output, workspace };
        self.backend.linear_add_norm(self.lease.block_mut(), &op)?;
        Ok(output)
    }

    /// The block that reads and writes deferred rows: what is between its layers, and its output,
    /// normalised.
    fn run_block(
        &mut self,
        tensors: &Tensors,
        norms: &[B::Norm; 2],
        input: Buffer,
        activation: Activation,
    ) -> Result<(Buffer, Buffer), Failure> {
        let intermediate = tensors.up.weight.shape()[0];
        let (up, down) = (slice::from_ref(&tensors.up), slice::from_ref(&tensors.down));
        let input_norm = Some(&tensors.norms[0]);
        let up = self.linear(StackTensors { input_norm, ..StackTensors::new(up) })?.weights;
        let down = self.linear(StackTensors::new(down))?.weights;
        let (rows, hidden) = (input.rows, input.columns);
        let bytes = |inputs, outputs| self.lower().linear_workspace(rows, inputs, outputs);
        let bytes = bytes(hidden, intermediate).max(bytes(intermediate, hidden));
        let matrix = self.buffer(rows, intermediate);
        let between = Some(Between { matrix, workspace: self.workspace(bytes) });
        let output = self.buffer_of(rows, hidden, Copies::Deferred);
        let ([first, norm], up, down) = (norms, &up, &down);
        let input_norm = Some(first);
        let op = FeedForward { input, input_norm, up, activation, down, norm, output, between };
        self.backend.feed_forward(self.lease.block_mut(), &op)?;
        let (input, output) = (output, self.buffer(rows, hidden));
        self.backend.normalize(self.lease.block_mut(), &Normalize { input, norm, output })?;
        Ok((matrix, output))
    }

    /// Rows of the projection and its residual, summed.
    fn projected(&self, tensors: &LinearTensors, x: &Matrix, y: &Matrix) -> Vec<Vec<Bounded>> {
        let (layer, precision) = (Layer::of(slice::from_ref(tensors)), self.backend.precision());
        let row = |(x, y): (&Vec<f64>, &Vec<f64>)| {
            let x = x.iter().copied().map(Bounded::exact);
            let projected = layer.apply(x, Activation::Identity, precision, false);
            let terms = projected.into_iter().zip(y);
            terms.map(|(x, &y)| reference::sum(&[x, Bounded::exact(y)], precision)).collect()
        };
        x.iter().zip(y).map(row).collect()
    }
}
