//! A device on paper: it loads nothing and runs nothing, but takes as much memory as a real one.
//!
//! - [`Footprint`] is what a device's operations take.
//! - [`PaperBackend`] counts the weights that are loaded onto it; batches are planned on it as on
//!   any other backend.
//!
//! The choice behind it: sizes come from the same forward pass and planner that serve, so that what
//! is planned on paper is what a device will take.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vecmill_memory::{HostBlock, HostSource, Region};

use crate::backend::{
    AddNorm, Attention, Backend, BackendError, Buffer, Embed, EmbeddingTensors, Indices, Linear,
    LinearTensors, NormTensors, Pool, Precision, StackTensors,
};
use crate::model::{DType, TensorView};

/// Scratch memory that NVIDIA recommends for cuBLASLt from compute capability 9.0 on.
const CUBLAS_WORKSPACE: usize = 32 << 20;

/// Sum and sum of squares, in `f32`, of each quarter of a row.
const ROW_MOMENTS: usize = 4 * 2 * size_of::<f32>();

/// What a device's operations take of memory.
#[derive(Clone)]
pub struct Footprint {
    /// As [`Backend::element_bytes`].
    pub element_bytes: usize,
    /// As [`Backend::narrow_bytes`], if linear layers that
    /// [suit](LinearTensors::suit_e4m3) it are narrow.
    pub narrow_bytes: Option<usize>,
    /// As [`Backend::linear_workspace`], for layers of any size.
    pub linear_workspace: usize,
    /// As [`Backend::attention_workspace`].
    pub attention_workspace: AttentionWorkspace,
    /// As [`Backend::deferred_bytes`], where normalisations may be deferred; else 0.
    pub deferred_bytes: usize,
}

/// Scratch bytes for tokens, the longest sequence and the size of a head.
pub type AttentionWorkspace = Arc<dyn Fn(usize, usize, usize) -> usize + Send + Sync>;

impl Footprint {
    /// A GPU that computes in `format`: scratch memory for cuBLASLt, and none for attention, whose
    /// scores stay in registers. In half precision the moments of rows are kept where a normalisation
    /// is deferred.
    pub fn gpu(format: DType) -> Self {
        let (element_bytes, narrow_bytes) = match format {
            DType::F8E4M3 => (DType::F16.bytes(), Some(format.bytes())),
            format => (format.bytes(), None),
        };
        Self {
            element_bytes,
            narrow_bytes,
            linear_workspace: CUBLAS_WORKSPACE,
            attention_workspace: Arc::new(|_, _, _| 0),
            deferred_bytes: match format {
                DType::F16 | DType::BF16 => ROW_MOMENTS,
                DType::F32 | DType::F8E4M3 => 0,
            },
        }
    }
}

impl fmt::Debug for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Footprint")
            .field("element_bytes", &self.element_bytes)
            .field("linear_workspace", &self.linear_workspace)
            .finish_non_exhaustive()
    }
}

/// A backend that only takes sizes.
#[derive(Debug)]
pub struct PaperBackend {
    footprint: Footprint,
    weight_bytes: AtomicUsize,
    #[cfg(test)]
    fuses_feed_forward: fn(usize) -> bool,
}

impl PaperBackend {
    /// A device that takes as much as `footprint` says.
    pub fn new(footprint: Footprint) -> Self {
        Self {
            footprint,
            weight_bytes: AtomicUsize::new(0),
            #[cfg(test)]
            fuses_feed_forward: |_| false,
        }
    }

    /// One that fuses feed-forward blocks of some numbers of rows.
    #[cfg(test)]
    pub(crate) fn fusing(footprint: Footprint, fuses_feed_forward: fn(usize) -> bool) -> Self {
        Self { fuses_feed_forward, ..Self::new(footprint) }
    }

    /// Bytes of the weights that were loaded so far, each tensor aligned as in a
    /// [region](Region::ALIGNMENT).
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes.load(Ordering::Relaxed)
    }

    fn count<'t>(&self, tensors: impl IntoIterator<Item = &'t TensorView>) {
        self.count_as(self.footprint.element_bytes, tensors);
    }

    fn count_as<'t>(
        &self,
        element_bytes: usize,
        tensors: impl IntoIterator<Item = &'t TensorView>,
    ) {
        let bytes = |tensor: &TensorView| {
            let bytes = tensor.elements() * element_bytes;
            bytes.next_multiple_of(Region::<HostSource>::ALIGNMENT)
        };
        let bytes = tensors.into_iter().map(bytes).sum();
        self.weight_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn load_layer(&self, parts: &[LinearTensors], weight_bytes: usize) {
        self.count_as(weight_bytes, parts.iter().map(|part| &part.weight));
        self.count(parts.iter().filter_map(|part| part.bias.as_ref()));
    }
}

/// A linear layer on paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaperLinear {
    narrow: bool,
}

fn only_paper<T>(operation: &'static str) -> Result<T, BackendError> {
    let reason = "this device exists on paper only, to take sizes".into();
    Err(BackendError { operation, reason })
}

impl Backend for PaperBackend {
    type Source = HostSource;
    type Linear = PaperLinear;
    type Norm = ();
    type Embeddings = ();
    type RelativeBias = ();
    type Fetched = ();

    fn source(&self) -> HostSource {
        HostSource
    }

    fn stream(&self) {}

    fn element_bytes(&self) -> usize {
        self.footprint.element_bytes
    }

    fn narrow_bytes(&self) -> usize {
        self.footprint.narrow_bytes.unwrap_or(self.footprint.element_bytes)
    }

    fn is_narrow(&self, layer: &PaperLinear) -> bool {
        layer.narrow
    }

    fn precision(&self) -> Precision {
        Precision::of(DType::F32)
    }

    fn linear_workspace(&self, _rows: usize, _inputs: usize, _outputs: usize) -> usize {
        self.footprint.linear_workspace
    }

    fn attention_workspace(&self, tokens: usize, longest: usize, head_size: usize) -> usize {
        (self.footprint.attention_workspace)(tokens, longest, head_size)
    }

    fn defers_norm(&self, _rows: usize, (): &()) -> bool {
        self.footprint.deferred_bytes > 0
    }

    fn deferred_bytes(&self) -> usize {
        self.footprint.deferred_bytes
    }

    #[cfg(test)]
    fn fuses_feed_forward(&self, rows: usize, _: &PaperLinear, _: &PaperLinear) -> bool {
        (self.fuses_feed_forward)(rows)
    }

    fn load_linear(&self, stack: StackTensors<'_>) -> Result<PaperLinear, BackendError> {
        let Footprint { element_bytes, narrow_bytes, .. } = self.footprint;
        let StackTensors { parts, wide, .. } = stack;
        let narrow = narrow_bytes.filter(|_| !wide && LinearTensors::suit_e4m3(parts));
        self.load_layer(parts, narrow.unwrap_or(element_bytes));
        Ok(PaperLinear { narrow: narrow.is_some() })
    }

    fn load_norm(&self, tensors: &NormTensors) -> Result<(), BackendError> {
        self.count([&tensors.gain, &tensors.bias]);
        Ok(())
    }

    fn load_embeddings(&self, tensors: &EmbeddingTensors) -> Result<(), BackendError> {
        self.count([&tensors.words, &tensors.positions]);
        self.count(&tensors.types);
        self.load_norm(&tensors.norm)
    }

    fn load_relative_bias(&self, table: &TensorView, _reach: usize) -> Result<(), BackendError> {
        self.count([table]);
        Ok(())
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
