//! Which attention kernel runs for a batch, and in which grid.
//!
//! - [`Attention`] launches it.
//! - [`AttentionKernel`], [`pays`] and [`rows`] are the rules.
//!
//! The choice behind it: a way is a file of `kernels/`, compiled for each head size that comes up.
//! The rows of blocks and jobs don't change a result's bits, so they follow the batch; ways do, and
//! follow it only where that is much faster.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use vecmill_model::Window;

use super::{Attended, DistanceBias, Heads, KernelError, Packed};
use super::{launch, name, number, output_defines};
use crate::compiler::{ATTENTION, ATTENTION_ANY, ATTENTION_SM90, Compiler};
use crate::driver::{Argument, DeviceSpan, LoadedKernel, Module, TensorElement, TensorMap};
use crate::gemm::Format;
use crate::gpu::Gpu;
use crate::row_order::RowOrder;
use crate::stream::CudaStream;

/// Threads of a block on tensor cores.
const BLOCK_THREADS: usize = 128;
/// Threads of a block of `attention_sm90.cu`, which fills a multiprocessor.
const HOPPER_THREADS: u32 = 640;
/// Rows of its tiles.
const HOPPER_TILE: u32 = 64;
/// Bytes of its ring of queries, and of both rings.
const HOPPER_RINGS: [u32; 2] = [64 << 10, 192 << 10];

/// The head size for which `attention_sm90.cu` is faster, without a bias. It takes 32, too, which is
/// bound by exponentials and loads, not by products.
pub(crate) const HOPPER_HEAD_SIZE: usize = 64;
/// Mixes of lengths, of the longest sequence and of the others, that with the usual lengths lead to
/// every way: short ones fill no tile of Hopper, and of many, one decides on the rows of blocks.
pub(crate) const MIXES: [(usize, usize); 2] = [(2, 2), (65, 1)];

/// Mean length from which on sequences fill its tiles well enough.
const HOPPER_LENGTH: usize = 96;

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AttentionKernel {
    Hopper,
    TensorCores,
    Any,
}

/// What of a batch the rules go by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    sequences: usize,
    tokens: usize,
    longest: usize,
}

/// What a device and a number format allow.
#[derive(Debug, Clone, Copy)]
struct Abilities {
    tensor_cores: bool,
    hopper: Option<TensorElement>,
}

/// Attention on one device, in one format.
#[derive(Debug)]
pub(super) struct Attention {
    device: Gpu,
    compiler: Arc<Compiler>,
    format: Format,
    abilities: Abilities,
    modules: Mutex<HashMap<Part, Arc<Module>>>,
    kernels: Mutex<HashMap<Variant, LoadedKernel>>,
}

/// What is compiled as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Part {
    way: AttentionKernel,
    head_size: usize,
    /// Whether the output is in e4m3.
    narrow: bool,
    /// Whether queries see less than their sequence.
    windowed: bool,
}

/// A kernel of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Variant {
    part: Part,
    /// Rows of a block, where kernels differ by them.
    rows: usize,
    biased: bool,
}

impl Abilities {
    fn new(architecture: &str, format: Format, since_ampere: bool) -> Self {
        let (tensor_cores, element) = match format {
            Format::F16 => (true, Some(TensorElement::F16)),
            Format::Bf16 => (since_ampere, Some(TensorElement::Bf16)),
            Format::F32 => (false, None),
        };
        Self { tensor_cores, hopper: element.filter(|_| architecture == "sm_90a") }
    }

    fn way(self, lengths: Lengths, head_size: usize, biased: bool) -> AttentionKernel {
        let hopper_takes = head_size == HOPPER_HEAD_SIZE && !biased;
        if self.hopper.is_some() && hopper_takes && pays(lengths) {
            AttentionKernel::Hopper
        } else if self.tensor_cores && head_size.is_multiple_of(16) && head_size <= 128 {
            AttentionKernel::TensorCores
        } else {
            AttentionKernel::Any
        }
    }
}

impl Packed<'_> {
    pub(super) fn lengths(self) -> Lengths {
        let Self { sequences, tokens, longest, .. } = self;
        Lengths { sequences, tokens, longest }
    }
}

impl Attention {
    pub(super) fn new(device: &Gpu, compiler: Arc<Compiler>, format: Format) -> Self {
        // From compute capability 8.0 on there are matrix instructions for bf16.
        let since_ampere = device.info().compute_capability.0 >= 8;
        Self {
            device: device.clone(),
            abilities: Abilities::new(compiler.architecture(), format, since_ampere),
            compiler,
            format,
            modules: Mutex::default(),
            kernels: Mutex::default(),
        }
    }

    pub(super) fn run(
        &self,
        stream: &CudaStream,
        (qkv, output): (DeviceSpan<'_>, Attended<'_>),
        sequences: Packed<'_>,
        heads: Heads<'_>,
        row_order: &RowOrder,
    ) -> Result<(), KernelError> {
        let lengths = sequences.lengths();
        let way = self.abilities.way(lengths, heads.head_size, heads.bias.is_some());
        if let (AttentionKernel::Hopper, Some(element)) = (way, self.abilities.hopper) {
            let rows = (qkv, output);
            let backwards = row_order.turn();
            return self.run_on_hopper(stream, rows, sequences, (heads, backwards), element);
        }
        row_order.forwards();
        let Heads { heads, head_size, window, bias } = heads;
        let multiprocessors = self.multiprocessors();
        let (rows, threads) = match way {
            AttentionKernel::Any => (32, head_size.max(32).next_power_of_two()),
            _ => {
                let choices: &[usize] = if head_size <= 64 { &[128, 64] } else { &[64] };
                (rows(choices, lengths, heads, multiprocessors), BLOCK_THREADS)
            }
        };
        let (slots, slots_each) = slots(lengths, rows);
        let mut arguments = vec![
            Argument::Span(qkv),
            Argument::Span(sequences.starts),
            Argument::Span(output.rows),
            number(sequences.sequences),
            number(heads),
            number(slots_each),
            distances(window),
        ];
        let mut shared_bytes = 0;
        match bias {
            Some(DistanceBias::Table(table, reach)) => {
                arguments.extend([Argument::Span(table), number(reach)]);
                shared_bytes = 4 * (2 * reach + 1);
            }
            Some(DistanceBias::Alibi) => arguments.extend([Argument::Null, number(0)]),
            None => {}
        }
        let windowed = window != Window::FULL;
        let part = Part { way, head_size, narrow: output.narrow, windowed };
        let kernel = self.kernel(Variant { part, rows, biased: bias.is_some() })?;
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        launch(&kernel, stream, heads * slots, threads, shared_bytes, &arguments)
    }

    fn run_on_hopper(
        &self,
        stream: &CudaStream,
        (qkv, output): (DeviceSpan<'_>, Attended<'_>),
        sequences: Packed<'_>,
        (Heads { heads, head_size, window, .. }, backwards): (Heads<'_>, bool),
        element: TensorElement,
    ) -> Result<(), KernelError> {
        let lengths = sequences.lengths();
        let rows = rows(&[256, 128, 64], lengths, heads, self.multiprocessors());
        let (slots, slots_each) = slots(lengths, rows);
        let size = (sequences.tokens, 3 * heads * head_size);
        let tile = (HOPPER_TILE, u32::try_from(head_size).unwrap_or(u32::MAX));
        let map = TensorMap::new(self.device.context(), qkv, element, size, tile)?;
        let arguments = [
            Argument::TensorMap(&map),
            Argument::Span(sequences.starts),
            Argument::Span(output.rows),
            number(sequences.sequences),
            number(heads),
            number(rows),
            number(slots),
            number(slots_each),
            number(backwards.into()),
            distances(window),
        ];
        let (way, windowed) = (AttentionKernel::Hopper, window != Window::FULL);
        let part = Part { way, head_size, narrow: output.narrow, windowed };
        let kernel = self.kernel(Variant { part, rows: 0, biased: false })?;
        let blocks = (heads * slots).min(self.multiprocessors());
        let shared_bytes = hopper_shared_bytes(head_size) as usize;
        launch(&kernel, stream, blocks, HOPPER_THREADS, shared_bytes, &arguments)
    }

    /// Kernels that were launched so far.
    pub(super) fn ways_taken(&self) -> usize {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn kernel(&self, variant: Variant) -> Result<LoadedKernel, KernelError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&variant) {
            return Ok(kernel.clone());
        }
        let Variant { part, rows, biased } = variant;
        let Part { way, head_size, .. } = part;
        let module = self.module(part)?;
        let suffix = if biased { "_biased" } else { "" };
        let kernel = match way {
            AttentionKernel::Hopper => module.kernel(c"vecmill_attention_sm90")?,
            AttentionKernel::TensorCores => {
                module.kernel(&name(&format!("vecmill_attention_{rows}{suffix}")))?
            }
            AttentionKernel::Any => {
                module.kernel(&name(&format!("vecmill_attention_any{suffix}")))?
            }
        };
        if way == AttentionKernel::Hopper {
            kernel.allow_shared(hopper_shared_bytes(head_size))?;
        }
        kernels.insert(variant, kernel.clone());
        Ok(kernel)
    }

    fn module(&self, part: Part) -> Result<Arc<Module>, KernelError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&part) {
            return Ok(Arc::clone(module));
        }
        let source = match part.way {
            AttentionKernel::Hopper => ATTENTION_SM90,
            AttentionKernel::TensorCores => ATTENTION,
            AttentionKernel::Any => ATTENTION_ANY,
        };
        let mut defines = output_defines(part.narrow);
        defines.push(format!("HEAD_SIZE={}", part.head_size));
        defines.push(format!("WINDOWED={}", u8::from(part.windowed)));
        let module = self.compiler.load(source, self.format, &defines)?;
        modules.insert(part, Arc::clone(&module));
        Ok(module)
    }

    fn multiprocessors(&self) -> usize {
        self.device.info().multiprocessors as usize
    }
}

/// `Window` of `sequences.cuh`: two numbers of 32 bits, the left one first.
fn distances(window: Window) -> Argument<'static> {
    const ALL: usize = 1 << 29;
    let side = |distance: Option<usize>| distance.map_or(ALL, |distance| distance.min(ALL)) as u64;
    Argument::U64(side(window.left) | side(window.right) << 32)
}

/// What `attention_sm90.cu` is faster for, as measured on an H200.
fn pays(lengths: Lengths) -> bool {
    lengths.tokens > 0 && lengths.tokens >= HOPPER_LENGTH * lengths.sequences
}

/// `SHARED_BYTES` of `attention_sm90.cu`.
pub(crate) fn hopper_shared_bytes(head_size: usize) -> u32 {
    let head_size = u32::try_from(head_size).unwrap_or(u32::MAX);
    let tile = HOPPER_TILE * head_size * 2;
    let [queries, all] = HOPPER_RINGS;
    all + 16 * (all / tile) + 16 * (queries / tile) + 1024
}

/// Queries of a block or job: the most of `choices`, in falling order, that leaves work enough for
/// all multiprocessors and that a sequence may fill.
fn rows(choices: &[usize], lengths: Lengths, heads: usize, multiprocessors: usize) -> usize {
    let least = choices.last().copied().unwrap_or(1);
    let fits = |&&rows: &&usize| {
        2 * lengths.longest > rows && heads * slots(lengths, rows).0 >= 4 * multiprocessors
    };
    choices.iter().find(fits).copied().unwrap_or(least)
}

/// Blocks of `rows` queries that a head needs, and those of each sequence, or 0 if a block finds
/// its sequence by itself: whichever is fewer.
pub(super) fn slots(lengths: Lengths, rows: usize) -> (usize, usize) {
    let each = lengths.longest.div_ceil(rows);
    let even = lengths.sequences * each;
    let packed = lengths.tokens / rows + lengths.sequences;
    if even <= packed { (even, each) } else { (packed, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(sequences: usize, length: usize) -> Lengths {
        Lengths { sequences, tokens: sequences * length, longest: length }
    }

    #[test]
    fn only_hopper_in_16_bits_has_its_own_way() {
        let way = |architecture, format, head_size, biased| {
            Abilities::new(architecture, format, true).way(equal(4, 128), head_size, biased)
        };
        assert_eq!(way("sm_90a", Format::F16, 64, false), AttentionKernel::Hopper);
        assert_eq!(way("sm_90a", Format::Bf16, 64, false), AttentionKernel::Hopper);
        assert_eq!(
            way("sm_90a", Format::F16, 64, true),
            AttentionKernel::TensorCores,
            "it takes no bias"
        );
        assert_eq!(way("sm_90a", Format::F16, 32, false), AttentionKernel::TensorCores);
        assert_eq!(way("sm_90a", Format::F32, 64, false), AttentionKernel::Any);
        assert_eq!(way("sm_100a", Format::F16, 64, false), AttentionKernel::TensorCores);
        let turing = Abilities::new("sm_75", Format::Bf16, false);
        assert_eq!(turing.way(equal(4, 128), 64, false), AttentionKernel::Any);
    }

    #[test]
    fn hopper_takes_what_fills_its_tiles() {
        assert!(pays(equal(3, 96)) && !pays(equal(3, 95)));
        assert!(!pays(Lengths { sequences: 0, tokens: 0, longest: 0 }), "a map needs rows");
    }

    #[test]
    fn blocks_are_tall_where_sequences_are_long_and_work_is_plenty() {
        let tallest = |lengths| rows(&[256, 128, 64], lengths, 16, 132);
        assert_eq!(tallest(equal(64, 512)), 256);
        assert_eq!(tallest(equal(256, 128)), 128);
        assert_eq!(tallest(equal(1024, 64)), 64);
        assert_eq!(tallest(equal(1, 512)), 64);
    }

    #[test]
    fn slots_are_even_where_lengths_are() {
        assert_eq!(slots(equal(64, 512), 256), (128, 2));
        let mixed = Lengths { sequences: 10, tokens: 600, longest: 500 };
        assert_eq!(slots(mixed, 128), (14, 0));
    }
}
