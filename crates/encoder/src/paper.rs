//! A device on paper: it loads nothing and runs nothing, but plans as a real one of its kind does.
//!
//! - [`PaperBackend`] has a device's [`Lower`], and nothing else of it.
//! - [`Counting`] goes through a model's weights and plans where they would lie.
//!
//! The choice behind it: sizes come from the same forward pass, planner and [`Lower`] that serve, so
//! that what is planned on paper is what a device will take.

use vecmill_memory::{HostBlock, HostSource};

use crate::backend::{
    AddNorm, Attention, Backend, BackendError, Buffer, Embed, EmbeddingTensors, Indices, Linear,
    Lower, NormTensors, Pool, Precision, RegionWriter, StackTensors, Weight, WeightPlan,
};
use crate::forward::Load;
use vecmill_model::{DType, TensorView};

/// A backend that only takes sizes.
#[derive(Debug)]
pub struct PaperBackend<L>(L);

impl<L: Lower> PaperBackend<L> {
    /// A device of the kind that `lowering` says.
    pub fn new(lowering: L) -> Self {
        Self(lowering)
    }
}

/// Plans where weights lie.
pub(crate) struct Counting<'a, L> {
    pub(crate) lowering: &'a L,
    pub(crate) plan: WeightPlan,
}

impl<L: Lower> Load<PaperBackend<L>> for Counting<'_, L> {
    fn linear(&mut self, stack: StackTensors<'_>) -> Result<(), BackendError> {
        self.lowering.store(Weight::Linear(stack), &mut self.plan);
        Ok(())
    }

    fn norm(&mut self, tensors: &NormTensors) -> Result<(), BackendError> {
        self.lowering.store(Weight::Norm(tensors), &mut self.plan);
        Ok(())
    }

    fn embeddings(&mut self, tensors: &EmbeddingTensors) -> Result<(), BackendError> {
        self.lowering.store(Weight::Embeddings(tensors), &mut self.plan);
        Ok(())
    }

    fn relative_bias(
        &mut self,
        table: &TensorView,
        max_distance: usize,
    ) -> Result<(), BackendError> {
        self.lowering.store(Weight::RelativeBias { table, max_distance }, &mut self.plan);
        Ok(())
    }
}

fn only_paper<T>(operation: &'static str) -> Result<T, BackendError> {
    let reason = "this device exists on paper only, to take sizes".into();
    Err(BackendError { operation, reason })
}

/// What nothing is loaded into.
type Writer<'a> = &'a mut RegionWriter<HostBlock>;

impl<L: Lower> Backend for PaperBackend<L> {
    type Lower = L;
    type Source = HostSource;
    type Linear = ();
    type Norm = ();
    type Embeddings = ();
    type RelativeBias = ();
    type Fetched = ();

    fn source(&self) -> HostSource {
        HostSource
    }

    fn stream(&self) {}

    fn lowering(&self) -> &L {
        &self.0
    }

    fn precision(&self) -> Precision {
        Precision::of(DType::F32)
    }

    fn load_linear(&self, _: StackTensors<'_>, _: Writer<'_>) -> Result<(), BackendError> {
        only_paper("load a linear layer")
    }

    fn load_norm(&self, _: &NormTensors, _: Writer<'_>) -> Result<(), BackendError> {
        only_paper("load a normalisation")
    }

    fn load_embeddings(&self, _: &EmbeddingTensors, _: Writer<'_>) -> Result<(), BackendError> {
        only_paper("load embeddings")
    }

    fn load_relative_bias(
        &self,
        _: &TensorView,
        _: usize,
        _: Writer<'_>,
    ) -> Result<(), BackendError> {
        only_paper("load relative biases")
    }

    fn copy_in(&self, _: &mut HostBlock, _: &[u32], _: Indices) -> Result<(), BackendError> {
        only_paper("copy in")
    }

    fn embed(&self, _: &mut HostBlock, _: &Embed<'_, Self>) -> Result<(), BackendError> {
        only_paper("embed")
    }

    fn linear(&self, _: &mut HostBlock, _: &Linear<'_, Self>) -> Result<(), BackendError> {
        only_paper("linear")
    }

    fn attention(&self, _: &mut HostBlock, _: &Attention<'_, Self>) -> Result<(), BackendError> {
        only_paper("attention")
    }

    fn add_norm(&self, _: &mut HostBlock, _: &AddNorm<'_, Self>) -> Result<(), BackendError> {
        only_paper("add and normalise")
    }

    fn pool(&self, _: &mut HostBlock, _: &Pool) -> Result<(), BackendError> {
        only_paper("pool")
    }

    fn fetch(&self, _: &mut HostBlock, _: Buffer) -> Result<(), BackendError> {
        only_paper("fetch")
    }

    fn collect(&self, (): (), _: &mut [f32]) -> Result<(), BackendError> {
        only_paper("collect")
    }
}

/// A kind of device for tests of what is planned: all is stored as it is, in one format.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::backend::LinearShape;

    /// What takes memory, where it does.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Sizes {
        pub(crate) format: DType,
        pub(crate) linear_workspace: usize,
        pub(crate) attention_workspace: fn(usize, usize, usize) -> usize,
        pub(crate) deferred_bytes: usize,
        pub(crate) fuses: fn(usize) -> bool,
        pub(crate) way: fn(usize, usize) -> u64,
        pub(crate) attention_mixes: &'static [(usize, usize)],
    }

    impl Sizes {
        pub(crate) fn of(format: DType) -> Self {
            Self {
                format,
                linear_workspace: 0,
                attention_workspace: |_, _, _| 0,
                deferred_bytes: 0,
                fuses: |_| false,
                way: |_, _| 0,
                attention_mixes: &[],
            }
        }

        fn keep<'t>(
            &self,
            tensors: impl IntoIterator<Item = &'t TensorView>,
            plan: &mut WeightPlan,
        ) {
            let bytes = |tensor: &TensorView| tensor.elements() * self.element_bytes();
            tensors.into_iter().for_each(|tensor| plan.place(bytes(tensor)));
        }
    }

    impl Lower for Sizes {
        fn store(&self, weight: Weight<'_>, plan: &mut WeightPlan) {
            match weight {
                Weight::Linear(stack) => {
                    let LinearShape { inputs, outputs, .. } = stack.shape();
                    let narrow = self.is_narrow(stack.shape());
                    plan.place(inputs * outputs * if narrow { 1 } else { self.element_bytes() });
                    plan.place(outputs * self.element_bytes());
                }
                Weight::Norm(norm) => self.keep([&norm.gain, &norm.bias], plan),
                Weight::Embeddings(tensors) => {
                    self.keep([&tensors.words, &tensors.positions], plan);
                    self.keep(&tensors.types, plan);
                    self.store(Weight::Norm(&tensors.norm), plan);
                }
                Weight::RelativeBias { table, .. } => self.keep([table], plan),
            }
        }

        fn element_bytes(&self) -> usize {
            if self.format == DType::F8E4M3 { 2 } else { self.format.bytes() }
        }

        fn narrow_bytes(&self) -> usize {
            self.format.bytes()
        }

        fn is_narrow(&self, layer: LinearShape) -> bool {
            self.format == DType::F8E4M3 && !layer.wide
        }

        fn linear_workspace(&self, _rows: usize, _inputs: usize, _outputs: usize) -> usize {
            self.linear_workspace
        }

        fn attention_workspace(&self, tokens: usize, longest: usize, head_size: usize) -> usize {
            (self.attention_workspace)(tokens, longest, head_size)
        }

        fn fuses_feed_forward(&self, rows: usize, _: LinearShape, _: LinearShape) -> bool {
            (self.fuses)(rows)
        }

        fn defers_norm(&self, _rows: usize, _columns: usize) -> bool {
            self.deferred_bytes > 0
        }

        fn deferred_bytes(&self) -> usize {
            self.deferred_bytes
        }

        fn way(&self, rows: usize, planned: usize) -> u64 {
            (self.way)(rows, planned)
        }

        fn attention_mixes(&self) -> &'static [(usize, usize)] {
            self.attention_mixes
        }
    }
}
