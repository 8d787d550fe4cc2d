//! Linear layers, alone and with what follows them.

use std::slice;

use super::super::reference::{self, Bounded, Matrix};
use super::super::{Backend, Failure};
use super::{Stage, row, rows};
use crate::backend::{
    Between, Copies, FeedForward, Linear, LinearAddNorm, LinearTensors, Lower, NormTensors,
    Precision, StackTensors,
};
use crate::program::Projection;
use vecmill_model::Activation;

/// A linear layer's parameters, for the reference.
pub(super) struct Layer {
    weight: Matrix,
    bias: Vec<f64>,
}

impl Layer {
    pub(super) fn of(parts: &[LinearTensors]) -> Self {
        let weight = parts.iter().flat_map(|part| rows(&part.weight)).collect();
        let bias = parts.iter().filter_map(|part| part.bias.as_ref()).flat_map(row).collect();
        Self { weight, bias }
    }

    /// `narrow` says that the layer's operands are.
    pub(super) fn apply(
        &self,
        x: impl Iterator<Item = Bounded>,
        activation: Activation,
        precision: Precision,
        narrow: bool,
    ) -> Vec<Bounded> {
        let narrow = precision.narrow.filter(|_| narrow);
        let x = reference::operands(x, precision, narrow);
        let sums = narrow.map_or(precision.accumulation, |narrow| narrow.accumulation);
        let outputs = self.weight.iter().zip(&self.bias);
        outputs.map(|(w, &b)| reference::linear(&x, w, b, activation, precision, sums)).collect()
    }
}

impl<B: Backend> Stage<'_, B> {
    pub(in crate::conformance) fn check_linear_add_norm(
        mut self,
        count: usize,
        inputs: usize,
        columns: usize,
    ) -> Result<(), Failure> {
        let (input, x) = self.random(count, inputs)?;
        let (residual, y) = self.random(count, columns)?;
        let part = self.linear_tensors(columns, inputs)?;
        let layer = Layer::of(slice::from_ref(&part));
        let tensors = self.norm_tensors(columns)?;
        let Projection { shape, weights } = self.linear(StackTensors::new(&[part]))?;
        let norm = self.norm(&tensors)?;
        let output = self.normalised_buffer(count, columns);
        let workspace = self.workspace(self.lower().linear_workspace(count, inputs, columns));
        let op = LinearAddNorm {
            input,
            weights: &weights,
            residual,
            residual_norm: None,
            norm: &norm,
            output,
            workspace,
        };
        self.backend.linear_add_norm(self.lease.block_mut(), &op)?;
        let (precision, narrow) = (self.backend.precision(), self.lower().is_narrow(shape));
        let expected = x.iter().zip(&y).flat_map(|(x, y)| {
            let x = x.iter().copied().map(Bounded::exact);
            let projected = layer.apply(x, Activation::Identity, precision, narrow);
            self.add_normalised(projected, y, &tensors)
        });
        let expected = expected.collect();
        self.compare(
            &format!("linear, add and normalise {count}×{inputs}→{columns}"),
            output,
            expected,
        )
    }

    /// `only_fused` says that it counts only where the backend fuses it.
    pub(in crate::conformance) fn check_feed_forward(
        mut self,
        [count, hidden, intermediate]: [usize; 3],
        activation: Activation,
        only_fused: bool,
    ) -> Result<(), Failure> {
        let (input, x) = self.random(count, hidden)?;
        let parts = [
            self.linear_tensors(intermediate, hidden)?,
            self.linear_tensors(hidden, intermediate)?,
        ];
        let tensors = self.norm_tensors(hidden)?;
        let load = |part| self.linear(StackTensors::new(slice::from_ref(part)));
        let (up, down) = (load(&parts[0])?, load(&parts[1])?);
        let norm = self.norm(&tensors)?;
        let fused = self.lower().fuses_feed_forward(count, up.shape, down.shape);
        if only_fused && !fused {
            return Ok(());
        }
        let narrow = [&up, &down].map(|layer| self.lower().is_narrow(layer.shape));
        let between = (!fused).then(|| {
            let copies = if narrow[1] { Copies::Narrow } else { Copies::Wide };
            let bytes = |inputs, outputs| self.lower().linear_workspace(count, inputs, outputs);
            let bytes = bytes(hidden, intermediate).max(bytes(intermediate, hidden));
            let matrix = self.buffer_of(count, intermediate, copies);
            Between { matrix, workspace: self.workspace(bytes) }
        });
        let output = self.normalised_buffer(count, hidden);
        let (up, down, norm) = (&up.weights, &down.weights, &norm);
        let input_norm = None;
        let op = FeedForward { input, input_norm, up, activation, down, norm, output, between };
        self.backend.feed_forward(self.lease.block_mut(), &op)?;
        let (layers, precision) = (parts.map(|part| Layer::of(&[part])), self.backend.precision());
        let expected = x.iter().flat_map(|x| {
            let rows = x.iter().copied().map(Bounded::exact);
            let wide = layers[0].apply(rows, activation, precision, narrow[0]);
            let of_last = Activation::Identity;
            let projected = layers[1].apply(wide.into_iter(), of_last, precision, narrow[1]);
            self.add_normalised(projected, x, &tensors)
        });
        let case = format!("feed forward {count}×{hidden}→{intermediate} {activation:?}");
        let expected = expected.collect();
        self.compare(&case, output, expected)
    }

    pub(in crate::conformance) fn check_linear(
        mut self,
        count: usize,
        inputs: usize,
        outputs: usize,
        activation: Activation,
    ) -> Result<(), Failure> {
        let (input, x) = self.random(count, inputs)?;
        // Two parts, as when queries and keys are stacked, if the outputs can be halved.
        let sizes = if outputs.is_multiple_of(2) { vec![outputs / 2; 2] } else { vec![outputs] };
        let mut parts = Vec::new();
        for size in sizes {
            parts.push(self.linear_tensors(size, inputs)?);
        }
        let Projection { shape, weights } = self.linear(StackTensors::new(&parts))?;
        let output = self.buffer(count, outputs);
        let workspace = self.workspace(self.lower().linear_workspace(count, inputs, outputs));
        let op = Linear { input, weights: &weights, activation, output, workspace };
        self.backend.linear(self.lease.block_mut(), &op)?;
        let (layer, precision) = (Layer::of(&parts), self.backend.precision());
        let narrow = self.lower().is_narrow(shape);
        let expected = x.iter().flat_map(|x| {
            layer.apply(x.iter().copied().map(Bounded::exact), activation, precision, narrow)
        });
        let case = format!("linear {count}×{inputs}→{outputs} {activation:?}");
        let expected = expected.collect();
        self.compare(&case, output, expected)
    }

    /// A row's sum with `residual`, normalised.
    fn add_normalised(
        &self,
        row: Vec<Bounded>,
        residual: &[f64],
        tensors: &NormTensors,
    ) -> Vec<Bounded> {
        let precision = self.backend.precision();
        // The sum may be stored as well, where the residual is added with the bias.
        let sum = |(x, &y): (Bounded, &f64)| {
            [reference::sum(&[x, Bounded::exact(y)], precision).stored(precision)]
        };
        self.normalised(row.into_iter().zip(residual).map(sum), tensors)
    }

    pub(super) fn linear_tensors(
        &mut self,
        outputs: usize,
        inputs: usize,
    ) -> Result<LinearTensors, Failure> {
        let weight = self.random.tensor(&[outputs, inputs])?;
        Ok(LinearTensors { weight, bias: Some(self.random.tensor(&[outputs])?) })
    }
}
