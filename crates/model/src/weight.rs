//! Weights as an architecture names them.

use std::borrow::Cow;

use crate::TensorView;

/// A weight as it is to be read: from one tensor of a file, or put together while it is loaded.
#[derive(Debug, Clone)]
pub enum Weight {
    /// As it lies in a file.
    Tensor(TensorView),
    /// The rows of several, one behind the other; vectors, end to end.
    Stack(Vec<TensorView>),
}

/// The sizes of a weight. A vector is one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightShape {
    /// Rows; of a linear layer, one for each output.
    pub rows: usize,
    /// Numbers in a row.
    pub columns: usize,
    /// Whether it lies in the model's file as one matrix of `f32`, so that it can be read there.
    pub lies_as_f32: bool,
}

impl WeightShape {
    /// Rows times columns.
    pub fn elements(self) -> usize {
        self.rows * self.columns
    }
}

impl Weight {
    /// Its tensors, in order.
    pub fn tensors(&self) -> &[TensorView] {
        match self {
            Self::Tensor(tensor) => std::slice::from_ref(tensor),
            Self::Stack(tensors) => tensors,
        }
    }

    /// Its sizes, as one.
    pub fn shape(&self) -> WeightShape {
        let elements = self.tensors().iter().map(TensorView::elements).sum::<usize>();
        let is_matrix = |tensor: &TensorView| tensor.shape().len() > 1;
        let last = |tensor: &TensorView| tensor.shape().last().copied();
        let columns = self.tensors().first().filter(|tensor| is_matrix(tensor)).and_then(last);
        let columns = columns.unwrap_or(elements);
        let lies_as_f32 = matches!(self, Self::Tensor(tensor) if tensor.lies_as_f32());
        WeightShape { rows: elements / columns.max(1), columns, lies_as_f32 }
    }

    /// With the second half of its rows before the first.
    #[must_use]
    pub fn with_halves_swapped(&self) -> Self {
        let rows = self.shape().rows;
        let (mut first, mut second, mut seen) = (Vec::new(), Vec::new(), 0);
        for tensor in self.tensors() {
            let count = tensor.shape().first().copied().unwrap_or(0);
            let middle = (rows / 2).saturating_sub(seen).min(count);
            first.push(tensor.rows(0..middle));
            second.push(tensor.rows(middle..count));
            seen += count;
        }
        second.extend(first);
        Self::Stack(second)
    }

    /// Its numbers, row by row.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Tensor(tensor) => tensor.to_f32(),
            Self::Stack(tensors) => {
                tensors.iter().flat_map(|tensor| tensor.to_f32().into_owned()).collect()
            }
        }
    }
}
