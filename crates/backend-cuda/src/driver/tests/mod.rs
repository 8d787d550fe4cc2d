//! Loading, launching and repeating kernels, on a device.

use std::ffi::CStr;
use std::sync::Arc;

use super::nvrtc::Nvrtc;
use super::{
    Allocation, Argument, Context, DeviceSpan, Launch, LoadedKernel, Module, Stream, TensorElement,
    TensorMap, device_info,
};
use crate::driver::DriverError;
use crate::probe::GpuInfo;

/// Machine code or PTX of the kernels in `kernels.cu`.
fn code(architecture: &str) -> Vec<u8> {
    let options = ["--std=c++17".to_owned(), format!("--gpu-architecture={architecture}")];
    Nvrtc::load().unwrap().compile("kernels.cu", include_str!("kernels.cu"), &options).unwrap()
}

fn linear(blocks: usize, threads: u32) -> Launch {
    Launch { blocks, threads, shared_bytes: 0, early: false }
}

struct Fixture {
    info: GpuInfo,
    context: Arc<Context>,
    stream: Stream,
    module: Arc<Module>,
    adder: LoadedKernel,
    memory: Allocation,
}

impl Fixture {
    fn new() -> Self {
        let info = device_info(0).unwrap();
        let (major, minor) = info.compute_capability;
        Self::with(&format!("sm_{major}{minor}"))
    }

    fn with(architecture: &str) -> Self {
        let info = device_info(0).unwrap();
        let context = Arc::new(Context::retain(0).unwrap());
        let module = Module::load(&context, &code(architecture)).unwrap();
        let memory = Allocation::new(&context, 1 << 20).unwrap();
        let stream = Stream::new(&context).unwrap();
        stream.fill_u32(memory.span(0..1 << 20).unwrap(), 0).unwrap();
        Self { info, context, stream, adder: module.kernel(c"add").unwrap(), module, memory }
    }

    fn kernel(&self, name: &CStr) -> LoadedKernel {
        self.module.kernel(name).unwrap()
    }

    fn span(&self) -> DeviceSpan<'_> {
        self.memory.span(0..self.memory.bytes()).unwrap()
    }

    /// The first words of the memory.
    fn words<const N: usize>(&self) -> [u32; N] {
        let mut bytes = vec![0; 4 * N];
        self.stream.copy_to_host(self.memory.span(0..4 * N).unwrap(), &mut bytes).unwrap();
        let (words, _) = bytes.as_chunks::<4>();
        std::array::from_fn(|index| u32::from_ne_bytes(words[index]))
    }

    fn add(&self, value: u32) {
        let arguments = [Argument::Span(self.span()), Argument::U32(value)];
        self.adder.launch(&self.stream, linear(1, 1), &arguments).unwrap();
    }

    fn is_hopper_or_later(&self) -> bool {
        self.info.compute_capability >= (9, 0)
    }
}

fn assert_arguments_arrive(fixture: &Fixture) {
    let given = [
        Argument::Span(fixture.span()),
        Argument::Null,
        Argument::U32(0xdead_beef),
        Argument::F32(-1.5),
        Argument::U64(0x0123_4567_89ab_cdef),
    ];
    let kernel = fixture.kernel(c"arguments");
    kernel.launch(&fixture.stream, linear(1, 1), &given).unwrap();
    let expected = [1, 0xdead_beef, (-1.5_f32).to_bits(), 0x89ab_cdef, 0x0123_4567, 0];
    assert_eq!(fixture.words(), expected);
}

#[test]
#[ignore = "needs NVRTC"]
fn the_kernels_of_these_tests_compile() {
    for architecture in ["sm_75", "sm_90", "compute_75"] {
        assert!(!code(architecture).is_empty());
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn arguments_arrive_whatever_their_kind() {
    assert_arguments_arrive(&Fixture::new());
}

#[test]
#[ignore = "needs a CUDA device"]
fn the_driver_runs_what_was_compiled_for_an_older_gpu() {
    assert_arguments_arrive(&Fixture::with("compute_75"));
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_launch_of_nothing_is_fine_and_does_nothing() {
    let fixture = Fixture::new();
    let arguments = [Argument::Span(fixture.span()), Argument::U32(1)];
    fixture.adder.launch(&fixture.stream, linear(0, 32), &arguments).unwrap();
    assert_eq!(fixture.words(), [0]);
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_wrong_launch_is_an_error_and_harms_nothing() {
    let fixture = Fixture::new();
    let (span, one) = (Argument::Span(fixture.span()), Argument::U32(1));
    let refused = |launch: Launch, arguments: &[Argument<'_>]| {
        fixture.adder.launch(&fixture.stream, launch, arguments).unwrap_err().to_string()
    };
    for launch in [
        linear(1 << 31, 1),
        linear(1 << 40, 1),
        linear(1, 1025),
        linear(1, 0),
        Launch { shared_bytes: 1 << 30, ..linear(1, 1) },
    ] {
        let error = refused(launch, &[span, one]);
        assert!(error.contains("cuLaunchKernelEx failed: CUDA_ERROR_INVALID_VALUE"), "{error}");
    }
    if fixture.info.driver >= (12, 4) {
        let swapped = refused(linear(1, 1), &[one, span]);
        assert_eq!(swapped, "add takes parameters of [8, 4] bytes and was given [4, 8]");
        for arguments in [&[span][..], &[span, one, one], &[]] {
            let error = refused(linear(1, 1), arguments);
            assert!(error.contains("takes parameters of [8, 4] bytes"), "{error}");
        }
    }
    let unknown = fixture.module.kernel(c"no_such_kernel").unwrap_err();
    assert_eq!((unknown.call, unknown.code), ("cuLibraryGetKernel", 500));

    fixture.add(7);
    assert_eq!(fixture.words(), [7], "all works as before");
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_kernel_can_have_more_shared_memory_than_48_kib_if_it_is_allowed() {
    let fixture = Fixture::new();
    let kernel = fixture.kernel(c"shared");
    // What all devices from compute capability 7.5 on have.
    let bytes = 64 << 10;
    let launch = Launch { shared_bytes: bytes, ..linear(1, 64) };
    let arguments = [Argument::Span(fixture.span()), Argument::U32(bytes)];
    assert!(kernel.launch(&fixture.stream, launch, &arguments).is_err());
    assert!(kernel.allow_shared(1 << 30).is_err(), "more than there is");
    kernel.allow_shared(bytes).unwrap();
    kernel.launch(&fixture.stream, launch, &arguments).unwrap();
    assert_eq!(fixture.words::<64>(), std::array::from_fn(|index| 63 - index as u32));
}

#[test]
#[ignore = "needs a CUDA device"]
fn kernels_stay_when_their_module_is_dropped() {
    let fixture = Fixture::new();
    let kernel = fixture.kernel(c"add");
    let Fixture { module, stream, memory, .. } = fixture;
    drop(module);
    let span = memory.span(0..4).unwrap();
    let arguments = [Argument::Span(span), Argument::U32(3)];
    kernel.launch(&stream, linear(2, 32), &arguments).unwrap();
    let mut bytes = [0; 4];
    stream.copy_to_host(span, &mut bytes).unwrap();
    assert_eq!(u32::from_ne_bytes(bytes), 3 * 64);
}

#[test]
#[ignore = "needs a CUDA device"]
fn blocks_of_a_cluster_know_each_other() {
    let fixture = Fixture::new();
    if !fixture.is_hopper_or_later() {
        return;
    }
    let kernel = fixture.kernel(c"clusters");
    let launch = linear(8, 32);
    kernel.launch(&fixture.stream, launch, &[Argument::Span(fixture.span())]).unwrap();
    assert_eq!(fixture.words(), [4, 104, 204, 304, 4, 104, 204, 304, 0]);
    let clusters = kernel.resident_clusters(launch, 4).unwrap();
    assert!(clusters >= fixture.info.multiprocessors as usize / 4, "{clusters}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_tensor_map_describes_a_matrix_its_swizzle_and_its_end() {
    let fixture = Fixture::new();
    if !fixture.is_hopper_or_later() {
        return;
    }
    // 12 rows of 80 values with their place in them, of which a tile has 8 rows of 64.
    let (rows, columns) = (12, 80);
    let value = |row: usize, column: usize| ((row << 8) | column) as u16;
    let all = (0..rows).flat_map(|row| (0..columns).map(move |column| value(row, column)));
    let bytes: Vec<u8> = all.flat_map(u16::to_ne_bytes).collect();
    let (tiles_at, matrix_at) = (0..4096, 4096..4096 + bytes.len());
    let span = fixture.memory.span(matrix_at).unwrap();
    fixture.stream.copy_from_host(&bytes, span).unwrap();
    let describe =
        |size, rows| TensorMap::new(&fixture.context, span, TensorElement::F16, size, (rows, 64));
    let map = describe((rows, columns), 8).unwrap();
    for (row, column) in [(0, 0), (2, 16), (8, 48)] {
        let arguments = [
            Argument::TensorMap(&map),
            Argument::Span(fixture.memory.span(tiles_at.clone()).unwrap()),
            Argument::U32(row as u32),
            Argument::U32(column as u32),
        ];
        fixture.kernel(c"tile").launch(&fixture.stream, linear(1, 128), &arguments).unwrap();
        let words = fixture.words::<256>();
        for (y, x) in (0..8).flat_map(|y| (0..64).map(move |x| (y, x))) {
            // Parts of 16 bytes are where the lowest bits of their number and row's differ.
            let (part, within) = ((x / 8) ^ y, x % 8);
            let word = words[y * 32 + part * 4 + within / 2];
            let found = (word >> (16 * (within % 2))) as u16;
            let inside = row + y < rows && column + x < columns;
            let expected = if inside { value(row + y, column + x) } else { 0 };
            assert_eq!(found, expected, "row {y}, column {x} of the tile at {row}, {column}");
        }
    }
    for (size, box_rows) in [
        ((rows, 84), 8),          // rows of 168 bytes
        ((rows + 1, columns), 8), // beyond the span
        ((usize::MAX, columns), 8),
        ((0, columns), 8),
        ((rows, columns), 257),
        ((rows, columns), 0),
    ] {
        assert!(describe(size, box_rows).is_err(), "{size:?}, {box_rows}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_graph_repeats_what_was_captured() {
    let fixture = Fixture::new();
    let two_steps = || -> Result<(), DriverError> {
        fixture.add(1);
        fixture.add(10);
        Ok(())
    };
    let mut graph = fixture.stream.capture(two_steps).unwrap();
    assert_eq!(fixture.words(), [0], "captured and not run");
    let other = Stream::new(&fixture.context).unwrap();
    for _ in 0..3 {
        other.launch(&mut graph).unwrap();
    }
    other.synchronize().unwrap();
    assert_eq!(fixture.words(), [33]);
    // A graph that is dropped under way, and one of nothing.
    fixture.stream.launch(&mut graph).unwrap();
    drop(graph);
    assert_eq!(fixture.words(), [44]);
    let mut empty = fixture.stream.capture(|| Ok::<(), DriverError>(())).unwrap();
    fixture.stream.launch(&mut empty).unwrap();
    assert_eq!(fixture.words(), [44]);
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_capture_that_fails_leaves_the_stream_as_it_was() {
    let fixture = Fixture::new();
    let stream = &fixture.stream;
    let own = DriverError { call: "the caller", code: 1 };
    let failing = || {
        fixture.add(1);
        Err(own)
    };
    let error = stream.capture(failing).unwrap_err();
    assert_eq!(error, own);
    // Waiting is not allowed meanwhile, and whoever does so unnoticed spoils the capture.
    let error = stream.capture(|| stream.synchronize()).unwrap_err();
    assert_eq!(error.call, "cuStreamSynchronize");
    let unnoticed = || -> Result<(), DriverError> {
        let _ = stream.synchronize();
        Ok(())
    };
    let error = stream.capture(unnoticed).unwrap_err();
    assert_eq!(error.call, "cuStreamEndCapture");
    let nested = || stream.capture(|| Ok::<(), DriverError>(())).map(drop);
    let nested = stream.capture(nested).unwrap_err();
    assert_eq!(nested.call, "cuStreamBeginCapture");
    let panicking = std::panic::AssertUnwindSafe(|| {
        let _ = stream.capture(|| -> Result<(), DriverError> { panic!("in the capture") });
    });
    assert!(std::panic::catch_unwind(panicking).is_err());

    fixture.add(5);
    assert_eq!(fixture.words(), [5], "what failed to be captured did not run");
}
