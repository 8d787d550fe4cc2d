//! Ways, and what the rules make of blocks.

use std::collections::HashMap;
use std::path::Path;

use vecmill_encoder::{Graph, GraphBuilder, Prepared, Programs, Shape};
use vecmill_model::{
    Heads, Linear, Model, Norm, Rotary, RotaryScaling, TensorView, Weight, Window,
};

use crate::gemm::{own_norm_pays, own_pays};

use super::*;

const FORMATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

/// All that decides on kernels and algorithms of a batch of `rows`, planned as `planned`.
fn decisions(lowering: &CudaLowering, rows: usize, planned: usize) -> String {
    let sizes = [(384, 384), (384, 1536), (1536, 384), (768, 768), (1024, 4096), (4096, 1024)];
    let ours = sizes.map(|(inputs, outputs)| {
        let pays = [Activation::Identity, Activation::Gelu]
            .map(|activation| own_pays(rows, inputs, outputs, activation));
        (pays, own_norm_pays(rows, outputs), HopperGemm::variants(rows, inputs, outputs))
    });
    let wide = lowering.hopper && !lowering.fp8;
    let fused = wide && HopperGemm::fuses(planned, 384, 1536, lowering.multiprocessors);
    let deferred = wide && HopperGemm::deferring_pays(planned);
    let gated =
        lowering.hopper && HopperGemm::gating_pays(planned) && HopperGemm::rotating_pays(planned);
    let octave = rows.next_power_of_two();
    let library = format!("{:?} {octave} {fused} {deferred} {gated}", RowRange::of(rows));
    if lowering.hopper { format!("{library} {ours:?}") } else { library }
}

#[test]
fn rows_of_one_way_are_decided_on_alike() {
    for format in [DType::F16, DType::F8E4M3, DType::F32] {
        let lowering = CudaLowering::most(format);
        let mut known: HashMap<u64, String> = HashMap::new();
        for rows in 1..40_000_usize {
            for planned in [rows, rows.next_multiple_of(512)] {
                let found = decisions(&lowering, rows, planned);
                let way = lowering.way(rows, planned);
                let first = known.entry(way).or_insert_with(|| found.clone());
                assert_eq!(*first, found, "{format:?} {rows} planned as {planned}");
            }
        }
        assert!(known.len() < 500, "{} ways", known.len());
    }
}

fn weight(shape: &[usize]) -> Weight {
    let count = shape.iter().product();
    Weight::Tensor(TensorView::from_f32("w", shape, vec![0.0; count]).unwrap())
}

/// Embedded rows, and so many feed-forward blocks in the middle of a deep model.
fn blocks(hidden: usize, intermediate: usize, count: usize) -> Graph {
    let layer = |inputs, outputs| Linear { weight: weight(&[outputs, inputs]), bias: None };
    let norm = Norm { gain: weight(&[hidden]), bias: Some(weight(&[hidden])), epsilon: 1e-5 };
    let (up, down) = (layer(hidden, intermediate), layer(intermediate, hidden));
    let mut graph = GraphBuilder::new(12);
    let rows = graph.embed(&weight(&[4, hidden]), Some(&weight(&[4, hidden])), None);
    let mut rows = graph.norm(rows, &norm);
    graph.layer(Some(6));
    for _ in 0..count {
        let between = graph.linear(rows, &up, Activation::Gelu);
        let output = graph.linear(between, &down, Activation::Identity);
        let sum = graph.add(output, rows);
        rows = graph.norm(sum, &norm);
    }
    graph.finish(vec![rows]).0
}

fn shape(tokens: usize) -> Shape {
    Shape { tokens, sequences: 1, longest: 1 }
}

fn kernels(lowering: &CudaLowering, graph: &Graph, rows: RowBound) -> Vec<CudaKernel> {
    lowering.lower(graph, rows).steps().iter().map(|step| step.kernel).collect()
}

#[test]
fn a_fused_block_takes_no_memory_between_its_layers() {
    let (hidden, wide) = (384, 1536);
    let graph = blocks(hidden, wide, 1);
    let lowering = CudaLowering::most(DType::F16);
    let is_fused =
        |kernel: &CudaKernel| matches!(kernel, CudaKernel::FeedForward { between: None, .. });
    let rows = (16_000..40_000).find(|&rows| {
        kernels(&lowering, &graph, RowBound::Bucket(shape(rows))).iter().any(is_fused)
    });
    let rows = rows.unwrap();
    let peak = |bound| {
        let prepared = Prepared::of(lowering.lower(&graph, bound));
        prepared.plan().peak_bytes()
    };
    let fused = peak(RowBound::Bucket(shape(rows)));
    assert!(fused <= 2 * 2 * rows * hidden + (2 * rows + 16) * 4 + 1024, "{fused}");
    let apart = peak(RowBound::UpTo(shape(rows)));
    assert!(apart >= 2 * rows * (2 * hidden + wide), "the costliest is not fused");
}

#[test]
fn deferred_rows_keep_their_moments_until_they_are_normalised() {
    let graph = blocks(768, 3072, 2);
    let planes = |format, bound| {
        let program = CudaLowering::most(format).lower(&graph, bound);
        let outputs = program.steps().iter().filter_map(|step| step.writes.first());
        outputs.map(|&value| program.planes(value).planes.clone()).collect::<Vec<_>>()
    };
    let few = planes(DType::F16, RowBound::Bucket(shape(1000)));
    assert_eq!(few, [[1536], [1536], [1536]]);
    let rows = vec![1536];
    let deferred = vec![1536, ROW_MOMENTS_BYTES];
    let many = [rows.clone(), deferred.clone(), deferred, rows];
    assert_eq!(planes(DType::F16, RowBound::Bucket(shape(20_000))), many);
    assert_eq!(planes(DType::BF16, RowBound::UpTo(shape(10))), many, "whatever the rows");
    let narrow = planes(DType::F8E4M3, RowBound::UpTo(shape(20_000)));
    assert_eq!(narrow, [vec![1536, 768], vec![1536, 768], vec![1536]], "FP8 defers nothing");
}

#[test]
fn a_gpu_that_need_not_be_there_takes_no_less_than_any() {
    let graph = blocks(384, 1536, 2);
    for format in FORMATS {
        let most = CudaLowering::most(format);
        for (capability, hopper) in [((7, 5), false), ((8, 9), false), ((12, 0), false)] {
            let other = CudaLowering::new(format, capability, 80, hopper);
            for tokens in [1, 512, 16_384] {
                let rows = RowBound::UpTo(shape(tokens));
                let scratch = |lowering: &CudaLowering| {
                    let program = lowering.lower(&graph, rows);
                    program.steps().iter().map(|step| step.scratch).collect::<Vec<_>>()
                };
                let pairs = scratch(&other).into_iter().zip(scratch(&most));
                assert!(pairs.into_iter().all(|(other, most)| other <= most));
            }
            let wide = blocks(768, 3072, 1);
            let kernels = kernels(&other, &wide, RowBound::UpTo(shape(16_384)));
            let normalises = |kernel: &CudaKernel| matches!(kernel, CudaKernel::Normalize { .. });
            assert!(!kernels.iter().any(normalises), "it defers nothing");
        }
    }
}

#[test]
fn what_is_kept_of_rows_is_kept_for_who_reads_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
    let model = Model::open(&folder).unwrap();
    let (hidden, between) = (model.config.hidden, model.config.intermediate);
    let planes = |format| {
        let programs = Programs::of(CudaLowering::most(format), &model, None).unwrap();
        let prepared = programs.get(shape(64));
        let program = prepared.program();
        let written = program.steps().iter().flat_map(|step| &step.writes);
        written.map(|&value| program.planes(value).planes.clone()).collect::<Vec<_>>()
    };
    // Of each layer queries, keys and values; attention; its norm; the block's norm, and what is between
    // the block's layers.
    let wide = [3 * hidden, hidden, hidden, hidden, between].map(|columns| vec![2 * columns]);
    let rows = vec![2 * hidden];
    let half = [vec![rows.clone()], wide.to_vec(), wide.to_vec(), vec![rows.clone()]];
    assert_eq!(planes(DType::F16), half.concat());
    let both = vec![2 * hidden, hidden];
    let narrow = [vec![6 * hidden], vec![hidden], both.clone(), rows.clone(), vec![between]];
    let fp8 = [vec![both], narrow.to_vec(), wide.to_vec(), vec![rows]];
    assert_eq!(planes(DType::F8E4M3), fp8.concat(), "the last layer is not narrow");
}

/// A layer that normalises what it reads, with gates and rotary positions.
fn pre_norm_layer(hidden: usize, intermediate: usize) -> Graph {
    let layer = |inputs, outputs| Linear { weight: weight(&[outputs, inputs]), bias: None };
    let norm = Norm { gain: weight(&[hidden]), bias: None, epsilon: 1e-5 };
    let heads = Heads::new(hidden / 64, 64);
    let rotary = Rotary { dims: 64, theta: 10_000.0, scaling: RotaryScaling::None };
    let mut graph = GraphBuilder::new(12);
    let rows = graph.embed(&weight(&[4, hidden]), None, None);
    let rows = graph.norm(rows, &norm);
    graph.layer(Some(6));
    let qkv = graph.linear(rows, &layer(hidden, 3 * hidden), Activation::Identity);
    let turned = graph.rotate(qkv, heads, rotary);
    let attended = graph.attention(turned, heads, Window::around(64), None);
    let output = graph.linear(attended, &layer(hidden, hidden), Activation::Identity);
    let rows = graph.add(output, rows);
    let normalised = graph.norm(rows, &norm);
    let between =
        graph.gated_linear(normalised, &layer(hidden, 2 * intermediate), Activation::Gelu);
    let output = graph.linear(between, &layer(intermediate, hidden), Activation::Identity);
    let rows = graph.add(output, rows);
    let rows = graph.norm(rows, &norm);
    graph.finish(vec![rows]).0
}

#[test]
fn gates_are_applied_where_they_are_computed_if_rows_are_many() {
    let graph = pre_norm_layer(768, 1152);
    for format in [DType::F16, DType::F8E4M3] {
        let lowering = CudaLowering::most(format);
        let gates = |rows| {
            let kernels = kernels(&lowering, &graph, rows);
            let fused = kernels.iter().any(|k| matches!(k, CudaKernel::GatedLinear { .. }));
            assert!(!kernels.iter().any(|k| matches!(k, CudaKernel::Missing(_))), "{kernels:?}");
            assert_ne!(fused, kernels.iter().any(|k| matches!(k, CudaKernel::Gate { .. })));
            fused
        };
        assert!(gates(RowBound::Bucket(shape(2048))), "{format:?}");
        assert!(!gates(RowBound::Bucket(shape(2047))) && !gates(RowBound::UpTo(shape(5000))));
    }
    let kernels = kernels(&CudaLowering::most(DType::F32), &graph, RowBound::Bucket(shape(5000)));
    assert!(kernels.iter().any(|kernel| matches!(kernel, CudaKernel::Gate { .. })));
}

#[test]
fn rows_that_nobody_else_reads_are_turned_where_they_lie() {
    let graph = pre_norm_layer(384, 512);
    let program = CudaLowering::most(DType::BF16).lower(&graph, RowBound::Bucket(shape(40)));
    let mut steps = program.steps().iter();
    let turned = steps.find(|step| matches!(step.kernel, CudaKernel::Rotate { .. })).unwrap();
    assert_eq!(turned.reads, turned.writes);
    let many = kernels(&CudaLowering::most(DType::BF16), &graph, RowBound::Bucket(shape(2048)));
    assert!(many.iter().any(|kernel| matches!(kernel, CudaKernel::RotatedLinear { .. })));
    assert!(!many.iter().any(|kernel| matches!(kernel, CudaKernel::Rotate { .. })));
}
