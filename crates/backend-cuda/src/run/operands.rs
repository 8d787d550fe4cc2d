//! Where the matrices of a step are.

use vecmill_encoder::{Place, Places, ValueId};
use vecmill_memory::SourceError;

use crate::driver::DeviceSpan;
use crate::lower::Form;
use crate::source::CudaBlock;

/// A matrix in the slab, in the form in which a step reads or writes it. Its value may have more planes
/// than that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    pub(super) form: Form,
    pub(super) first: Place,
    last: Place,
}

impl Matrix {
    pub(super) fn of(places: &Places<'_>, value: ValueId, form: Form) -> Self {
        let last = places.planes(value).saturating_sub(1);
        Self { form, first: places.plane(value, 0), last: places.plane(value, last) }
    }

    pub(super) fn rows(self) -> usize {
        self.first.rows
    }

    pub(super) fn is_deferred(self) -> bool {
        matches!(self.form, Form::Deferred { .. })
    }

    /// The same, of which only the wide plane is written.
    pub(super) fn only_wide(self) -> Self {
        Self { form: Form::Wide, ..self }
    }

    /// Rows in the format of activations: of deferred ones, sums times gain.
    pub(super) fn wide(self, slab: &CudaBlock) -> Result<DeviceSpan<'_>, SourceError> {
        slab.span(self.first.bytes())
    }

    /// Rows in e4m3.
    pub(super) fn narrow(self, slab: &CudaBlock) -> Result<DeviceSpan<'_>, SourceError> {
        slab.span(self.last.bytes())
    }

    /// What is beside deferred rows.
    pub(super) fn moments(self, slab: &CudaBlock) -> Result<DeviceSpan<'_>, SourceError> {
        slab.span(self.last.bytes())
    }
}
