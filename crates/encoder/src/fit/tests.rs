//! What fits on paper, and that plans of buckets hold for every shape in them.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use vecmill_memory::Plan;

use crate::paper::PaperBackend;
use crate::paper::tests::Sizes;
use vecmill_model::DType;

fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name);
    Model::open(&folder).unwrap()
}

/// Attention scratch as the CPU's: by the longest sequence.
fn cpu() -> Sizes {
    let attention_workspace = |_, longest, head_size| 8 * longest * (head_size + 24);
    Sizes { attention_workspace, ..Sizes::of(DType::F32) }
}

/// Scratch memory for a library, and moments beside rows in half precision.
fn gpu(format: DType) -> Sizes {
    let deferred_bytes = if matches!(format, DType::F16 | DType::BF16) { 32 } else { 0 };
    Sizes { linear_workspace: 32 << 20, deferred_bytes, ..Sizes::of(format) }
}

fn on_paper(model: &str, sizes: Sizes) -> Encoder<PaperBackend<Sizes>> {
    Encoder::on_paper(sizes, &self::model(model), None).unwrap()
}

const DEMAND: Demand =
    Demand { budget_bytes: 64 << 20, in_flight: 1, longest_input: 128, max_batch_tokens: 1 << 20 };

fn fitted(demand: Demand) -> Fit {
    fit(&model("bert-mean"), None, cpu(), demand).unwrap()
}

#[test]
fn weights_and_slabs_fill_the_budget_without_exceeding_it() {
    for in_flight in [1, 2, 3] {
        let demand = Demand { in_flight, ..DEMAND };
        let fit = fitted(demand);
        assert_eq!(fit.in_flight, in_flight);
        let taken = fit.weights_bytes + in_flight * fit.slab_bytes;
        assert_eq!(taken + fit.headroom_bytes, demand.budget_bytes);
        assert!(
            fit.headroom_bytes < in_flight * Plan::GRANULE,
            "another granule would have fitted"
        );
        assert!(fit.bytes_per_token > 0);
    }
    let one = fitted(DEMAND).largest.tokens;
    let two = fitted(Demand { in_flight: 2, ..DEMAND }).largest.tokens;
    assert!(two < one && two > one / 3);
}

#[test]
fn a_batch_is_no_larger_than_asked_for_and_no_smaller_than_the_longest_input() {
    assert_eq!(fitted(Demand { max_batch_tokens: 1000, ..DEMAND }).largest.tokens, 1000);
    let fit = fitted(Demand { max_batch_tokens: 1, ..DEMAND });
    assert_eq!(fit.largest, Shape { tokens: 128, sequences: 128, longest: 128 });
    let sizes: Vec<_> = fit.slabs.iter().map(|slab| slab.bytes).collect();
    assert!(sizes.is_sorted() && sizes.iter().all(|bytes| bytes.is_multiple_of(Plan::GRANULE)));
}

#[test]
fn what_is_missing_is_exactly_what_has_to_be_added() {
    let model = model("bert-mean");
    let demand = |budget_bytes| Demand { budget_bytes, in_flight: 2, ..DEMAND };
    let Err(FitError::TooSmall { missing_bytes, .. }) = fit(&model, None, cpu(), demand(1 << 20))
    else {
        panic!("a megabyte is too small");
    };
    let enough = (1 << 20) + missing_bytes;
    let least = fit(&model, None, cpu(), demand(enough)).unwrap();
    assert_eq!((least.in_flight, least.headroom_bytes), (1, 0), "two do not fit");
    assert!(fit(&model, None, cpu(), demand(enough - 1)).is_err());
}

#[test]
fn a_gpu_takes_half_the_weights_and_scratch_for_its_library() {
    let model = model("bert-mean");
    let single = fit(&model, None, gpu(DType::F32), DEMAND).unwrap();
    let half = fit(&model, None, gpu(DType::F16), DEMAND).unwrap();
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
fn what_is_kept_of_rows_is_planned_for_who_reads_them() {
    const MOMENTS: usize = 32;
    let model = model("bert-mean");
    let bytes = |format| {
        let encoder = on_paper("bert-mean", gpu(format));
        let plan = encoder.plan_exactly(Shape { tokens: 64, sequences: 1, longest: 64 });
        // Behind the indices: rows and queries, keys and values; scratch; attention's output;
        // scratch; rows; scratch; rows; the wide matrix.
        let sizes = [1, 2, 4, 6, 9].map(|index| plan.buffers()[index].bytes / 64);
        // Before scratch, rows that are normalised now, and the result.
        let last = plan.buffers().len() - if format == DType::F16 { 4 } else { 3 };
        (sizes, plan.buffers()[last].bytes / 64, encoder.weights().region_bytes())
    };
    let (hidden, wide) = (model.config.hidden, model.config.intermediate);
    let (sizes, last_wide, half) = bytes(DType::F16);
    assert_eq!(sizes, [2 * hidden, 6 * hidden, 2 * hidden, 2 * hidden + MOMENTS, 2 * wide]);
    assert_eq!(last_wide, 2 * wide);
    let (sizes, last_wide, weights) = bytes(DType::F8E4M3);
    assert_eq!(sizes, [3 * hidden, 6 * hidden, hidden, 3 * hidden, wide]);
    assert_eq!(last_wide, 2 * wide, "the last layer is not narrow");
    let of_a_layer = 4 * hidden * hidden + 2 * hidden * wide;
    assert_eq!(half - weights, (model.config.layers - 1) * of_a_layer);
}

#[test]
fn behind_the_last_attention_rows_that_no_one_reads_have_no_memory() {
    const SEQUENCES: usize = 2;
    for name in ["bert-cls", "bert-lasttoken"] {
        let (model, encoder) = (model(name), on_paper(name, gpu(DType::F32)));
        let plan = encoder.plan_exactly(Shape { tokens: 64, sequences: SEQUENCES, longest: 32 });
        // Before scratch, which is last.
        let wide = plan.buffers()[plan.buffers().len() - 2].bytes;
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
        let plan = encoder.plan(shape);
        prop_assert!(encoder.holds(shape, &plan));
        let exact = encoder.plan_exactly(shape).peak_bytes();
        prop_assert!(plan.peak_bytes() >= exact);
        // A sixteenth for tokens, an eighth for the scratch memory, and what rounding up to
        // multiples of 16 tokens adds to short ones.
        let per_token = 4 * (3 + 1 + 2 + 1) * 32;
        prop_assert!(plan.peak_bytes() <= exact + exact / 8 + 16 * per_token + 4096);
        prop_assert!(tokens > 2000 || plan.peak_bytes() <= encoder.plan(largest).peak_bytes());
        let again = encoder.plan(shape);
        prop_assert!(Arc::ptr_eq(&plan, &again));
    }
}

#[test]
fn tokens_within_a_slab_are_as_many_as_fit() {
    let largest = Shape { tokens: 3000, sequences: 3000, longest: 128 };
    let encoder = on_paper("bert-mean", cpu()).with_largest(largest);
    assert_eq!(encoder.tokens_within(0), 0);
    assert_eq!(encoder.tokens_within(encoder.plan(largest).peak_bytes()), 3000);
    let bytes = encoder.plan(largest).peak_bytes() / 2;
    let tokens = encoder.tokens_within(bytes);
    let needs =
        |tokens| encoder.plan(Shape { tokens, sequences: tokens, longest: 128 }).peak_bytes();
    assert!(needs(tokens) <= bytes && needs(tokens + 1) > bytes, "{tokens}");
}

#[test]
fn all_batches_of_a_bucket_fuse_the_same() {
    let fuses = |rows| (900..=1024).contains(&rows) || (1900..=2048).contains(&rows);
    let largest = Shape { tokens: 3000, sequences: 3000, longest: 128 };
    let sizes = Sizes { fuses, ..gpu(DType::F16) };
    let encoder = on_paper("bert-mean", sizes).with_largest(largest);
    for tokens in (890..1100).chain(1850..2100) {
        let shape = Shape { tokens, sequences: tokens, longest: 128 };
        assert!(encoder.holds(shape, &encoder.plan(shape)), "{tokens}");
    }
}
