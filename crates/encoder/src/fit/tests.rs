//! What fits on paper, and that plans of buckets hold for every shape in them.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use vecmill_memory::Plan;

use super::*;
use crate::program::RowBound;
use crate::sizes::Sizes;
use vecmill_model::DType;

fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name);
    Model::open(&folder).unwrap()
}

/// Attention scratch as the CPU's: by the longest sequence.
fn cpu() -> Sizes {
    let attention_scratch = |longest, head_size| 8 * longest * (head_size + 24);
    Sizes { attention_scratch, ..Sizes::of(DType::F32) }
}

/// Scratch memory for a library.
fn gpu(format: DType) -> Sizes {
    Sizes { linear_scratch: 32 << 20, ..Sizes::of(format) }
}

fn on_paper(model: &str, sizes: Sizes) -> Programs<Sizes> {
    Programs::of(sizes, &self::model(model), None).unwrap()
}

const ASK: Ask =
    Ask { budget_bytes: 64 << 20, in_flight: 1, longest_input: 128, max_batch_tokens: 1 << 20 };

fn fitted(ask: Ask) -> Fit {
    fit(&model("bert-mean"), None, cpu(), ask).unwrap()
}

#[test]
fn weights_and_slabs_fill_the_budget_without_exceeding_it() {
    for in_flight in [1, 2, 3] {
        let ask = Ask { in_flight, ..ASK };
        let fit = fitted(ask);
        assert_eq!(fit.in_flight, in_flight);
        let taken = fit.weights_bytes + in_flight * fit.slab_bytes;
        assert_eq!(taken + fit.headroom_bytes, ask.budget_bytes);
        assert!(
            fit.headroom_bytes < in_flight * Plan::GRANULE,
            "another granule would have fitted"
        );
        assert!(fit.bytes_per_token > 0);
    }
    let one = fitted(ASK).largest.tokens;
    let two = fitted(Ask { in_flight: 2, ..ASK }).largest.tokens;
    assert!(two < one && two > one / 3);
}

#[test]
fn a_batch_is_no_larger_than_asked_for_and_no_smaller_than_the_longest_input() {
    assert_eq!(fitted(Ask { max_batch_tokens: 1000, ..ASK }).largest.tokens, 1000);
    let fit = fitted(Ask { max_batch_tokens: 1, ..ASK });
    assert_eq!(fit.largest, Shape { tokens: 128, sequences: 128, longest: 128 });
    let sizes: Vec<_> = fit.slabs.iter().map(|slab| slab.bytes).collect();
    assert!(sizes.is_sorted() && sizes.iter().all(|bytes| bytes.is_multiple_of(Plan::GRANULE)));
}

#[test]
fn what_is_missing_is_exactly_what_has_to_be_added() {
    let model = model("bert-mean");
    let ask = |budget_bytes| Ask { budget_bytes, in_flight: 2, ..ASK };
    let Err(FitError::TooSmall { missing_bytes, .. }) = fit(&model, None, cpu(), ask(1 << 20))
    else {
        panic!("a megabyte is too small");
    };
    let enough = (1 << 20) + missing_bytes;
    let least = fit(&model, None, cpu(), ask(enough)).unwrap();
    assert_eq!((least.in_flight, least.headroom_bytes), (1, 0), "two do not fit");
    assert!(fit(&model, None, cpu(), ask(enough - 1)).is_err());
}

#[test]
fn a_gpu_takes_half_the_weights_and_scratch_for_its_library() {
    let model = model("bert-mean");
    let single = fit(&model, None, gpu(DType::F32), ASK).unwrap();
    let half = fit(&model, None, gpu(DType::F16), ASK).unwrap();
    assert!(half.largest.tokens > single.largest.tokens * 3 / 2);
    assert!(half.slab_bytes > 32 << 20 && half.slab_bytes <= 64 << 20);
    let counted = |format| on_paper("bert-mean", gpu(format)).weights().region_bytes();
    let pooler = 32 * 32 + 32; // in the file, but the forward pass has no use for it
    let numbers = model.weights.bytes_as(DType::F32) / 4 - pooler;
    // Every tensor starts at a multiple of 256 bytes.
    let tensors = 5 + 2 * 16;
    for (format, bytes) in [(DType::F32, 4), (DType::F16, 2)] {
        let (counted, exact) = (counted(format), numbers * bytes);
        assert!(exact <= counted && counted < exact + tensors * 256, "{counted} for {exact}");
    }
}

#[test]
fn behind_the_last_attention_rows_that_no_one_reads_have_no_memory() {
    const SEQUENCES: usize = 2;
    for name in ["bert-cls", "bert-lasttoken"] {
        let (model, encoder) = (model(name), on_paper(name, gpu(DType::F32)));
        let plan = exact(&encoder, Shape { tokens: 64, sequences: SEQUENCES, longest: 32 });
        // The wide matrix and scratch, one of hidden and scratch, its sum and normalised.
        let wide = plan.buffers()[plan.buffers().len() - 6].bytes;
        assert_eq!(wide, SEQUENCES * model.config.intermediate * 4, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_plan_of_a_bucket_holds_for_each_of_its_shapes(
        lengths in prop::collection::vec(1usize..=128, 1..60),
    ) {
        let largest = Shape { tokens: 2000, sequences: 2000, longest: 128 };
        let encoder = on_paper("mpnet-mean", cpu()).with_largest(largest);
        let tokens: usize = lengths.iter().sum();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let shape = Shape { tokens, sequences: lengths.len(), longest };
        let prepared = encoder.get(shape);
        let plan = prepared.plan();
        let exact = exact(&encoder, shape);
        let pairs = exact.buffers().iter().zip(plan.buffers());
        prop_assert_eq!(exact.buffers().len(), plan.buffers().len());
        prop_assert!(pairs.clone().all(|(exact, planned)| exact.bytes <= planned.bytes));
        let exact = exact.peak_bytes();
        prop_assert!(plan.peak_bytes() >= exact);
        // A sixteenth for tokens, an eighth for the scratch memory, and what rounding up to
        // multiples of 16 tokens adds to short ones.
        let per_token = 4 * (3 + 1 + 2 + 1 + 1) * 32;
        prop_assert!(plan.peak_bytes() <= exact + exact / 8 + 16 * per_token + 4096);
        let most = encoder.get(largest).plan().peak_bytes();
        prop_assert!(tokens > 2000 || plan.peak_bytes() <= most);
        let again = encoder.get(shape);
        prop_assert!(Arc::ptr_eq(&prepared, &again));
    }
}

fn exact(programs: &Programs<Sizes>, shape: Shape) -> Plan {
    programs.make(RowBound::Bucket(shape)).plan().clone()
}

#[test]
fn tokens_within_a_slab_are_as_many_as_fit() {
    let largest = Shape { tokens: 3000, sequences: 3000, longest: 128 };
    let encoder = on_paper("bert-mean", cpu()).with_largest(largest);
    assert_eq!(encoder.tokens_within(0), 0);
    assert_eq!(encoder.tokens_within(encoder.get(largest).plan().peak_bytes()), 3000);
    let bytes = encoder.get(largest).plan().peak_bytes() / 2;
    let tokens = encoder.tokens_within(bytes);
    let needs =
        |tokens| encoder.get(Shape { tokens, sequences: tokens, longest: 128 }).plan().peak_bytes();
    assert!(needs(tokens) <= bytes && needs(tokens + 1) > bytes, "{tokens}");
}
