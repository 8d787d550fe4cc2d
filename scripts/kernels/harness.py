"""What the checks of the CUDA kernels share: compiling and launching, errors against bounds, times
against the memory's floor, one table.

Kernels are compiled by NVRTC as the backend does it (`compile.py`), so that what is checked here is
what runs there. Needs PyTorch and CuPy on a machine with a GPU.
"""

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import cupy
import numpy as np
import torch
from compile import Compiler, options, source

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
# Unit roundoffs, and half of the smallest subnormal that a result may be rounded to.
ROUNDOFF = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-24}
UNDERFLOW = {"F16": 2.0**-25, "BF16": 2.0**-126, "F32": 2.0**-126}
ACCUMULATION = 2.0**-24
# Failures that are printed; all are counted.
MOST_PRINTED = 40
# Set behind every output; a kernel that writes there is wrong.
GUARD = 256

Launch = Callable[[], None]


class Kernels:
    """The kernels of one file, compiled for this GPU and one type."""

    def __init__(self, compiler: Compiler, file: str, element: str, *defines: str) -> None:
        major, minor = torch.cuda.get_device_capability()
        architecture = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
        flags = [*options(architecture, element), *defines]
        code, log = compiler.compile(source(file), file, flags)
        if not code:
            raise SystemExit(f"{file} {element}: {log}")
        # Kept, as CuPy loads the file when it is first needed.
        self._folder = tempfile.TemporaryDirectory()
        binary = Path(self._folder.name) / "kernels.cubin"
        binary.write_bytes(code)
        self._module = cupy.RawModule(path=str(binary))
        self._functions: dict[str, cupy.RawKernel] = {}
        self._code = code
        self._loaded: dict[tuple[str, int], ctypes.c_void_p] = {}

    def launch(
        self,
        name: str,
        grid: int | tuple[int, ...],
        block: int,
        *arguments: object,
        shared: int = 0,
    ) -> None:
        """Tensors are passed as pointers, None as a null pointer, int as u32 and float as f32."""
        if any(isinstance(argument, TensorMap) for argument in arguments):
            self._launch_with_maps(name, grid, block, arguments, shared)
            return
        kernel = self._functions.get(name)
        if kernel is None:
            kernel = self._functions[name] = self._module.get_function(name)
        if shared > 48 * 1024 and kernel.max_dynamic_shared_size_bytes < shared:
            kernel.max_dynamic_shared_size_bytes = shared
        grid = (grid,) if isinstance(grid, int) else grid
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        with stream:
            kernel(grid, (block,), tuple(map(_argument, arguments)), shared_mem=shared)


    def _launch_with_maps(
        self, name: str, blocks: int, block: int, arguments: Sequence, shared: int
    ) -> None:
        """CuPy passes no structures by value."""
        function = self._loaded.get((name, shared))
        if function is None:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            driver("cuModuleLoadData", ctypes.byref(module), self._code)
            driver("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            most_shared = 8
            driver("cuFuncSetAttribute", function, most_shared, shared)
            self._loaded[name, shared] = function
        scalars = [
            None if isinstance(a, TensorMap) else np.atleast_1d(_argument(a)) for a in arguments
        ]
        addresses = [
            a.address if scalar is None else scalar.ctypes.data
            for a, scalar in zip(arguments, scalars, strict=True)
        ]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        pointers = (ctypes.c_void_p * len(addresses))(*addresses)
        driver(
            "cuLaunchKernel", function, blocks, 1, 1, block, 1, 1, shared, stream, pointers, None
        )


def driver(call: str, *arguments: object) -> None:
    code = getattr(ctypes.CDLL("libcuda.so.1"), call)(*arguments)
    if code:
        raise RuntimeError(f"{call}: CUDA error {code}")


class TensorMap:
    """How TMA finds boxes of a matrix without gaps; their rows of 64 or 128 bytes are swizzled by
    as many."""

    def __init__(self, matrix: torch.Tensor, box_rows: int, box_columns: int) -> None:
        rows, columns = matrix.shape
        row_bytes = columns * matrix.itemsize
        element = {torch.float16: 6, torch.bfloat16: 9}[matrix.dtype]
        swizzle = {64: 2, 128: 3}[box_columns * matrix.itemsize]
        promote_256_bytes = 3
        self._memory = ctypes.create_string_buffer(192)
        self.address = -(-ctypes.addressof(self._memory) // 64) * 64
        driver(
            "cuTensorMapEncodeTiled", ctypes.c_void_p(self.address), element, 2,
            ctypes.c_void_p(matrix.data_ptr()), (ctypes.c_uint64 * 2)(columns, rows),
            (ctypes.c_uint64 * 1)(row_bytes), (ctypes.c_uint32 * 2)(box_columns, box_rows),
            (ctypes.c_uint32 * 2)(1, 1), 0, swizzle, promote_256_bytes, 0,
        )  # fmt: skip


def _argument(value: object) -> object:
    if value is None:
        return np.uint64(0)
    if isinstance(value, torch.Tensor):
        assert value.data_ptr() % 64 == 0 or value.numel() == 0, "not aligned as the backend's"
        return np.uint64(value.data_ptr())
    if isinstance(value, float):
        return np.float32(value)
    return np.uint32(value) if isinstance(value, int) else value


def random(*shape: int, like: torch.dtype) -> torch.Tensor:
    """Fresh values around zero, as a kernel would find them."""
    return torch.randn(shape, device="cuda").to(like)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A matrix of NaN with a guard behind it."""
    count = int(np.prod(shape))
    whole = torch.full((count + GUARD,), float("nan"), device="cuda")
    whole[count:] = 7.0
    return whole.to(dtype)[:count].view(shape)


def guard_intact(output: torch.Tensor) -> bool:
    whole = torch.tensor([], dtype=output.dtype, device="cuda").set_(output.untyped_storage())
    return bool((whole[output.numel() :].float() == 7.0).all())


@dataclass
class Report:
    """Errors and times, printed together at the end."""

    failures: int = 0
    checks: int = 0
    # By kernel and type: cases, largest error over its bound, and where.
    errors: dict[tuple[str, str], tuple[int, float, str]] = field(default_factory=dict)
    times: list[str] = field(default_factory=list)
    bandwidth: float = 0.0

    def error(
        self,
        name: str,
        element: str,
        case: str,
        output: torch.Tensor,
        expected: torch.Tensor,
        bound: torch.Tensor | float,
    ) -> None:
        """Compares with an f64 reference; `bound` is the error that each element may have."""
        difference = (output.double() - expected).abs()
        # A bound of zero asks for the very value; NaN and what was never written are
        # infinitely wrong.
        ratio = torch.where(difference == 0, 0.0, difference / bound)
        ratio = torch.nan_to_num(ratio, nan=float("inf"))
        worst = float(ratio.max()) if ratio.numel() else 0.0
        if not guard_intact(output):
            worst = float("inf")
        place = divmod(int(ratio.argmax()) if ratio.numel() else 0, output.shape[-1])
        wrong = int((ratio > 1.0).sum())
        cases, previous, where = self.errors.get((name, element), (0, 0.0, ""))
        if worst >= previous:
            previous, where = worst, case
        self.errors[name, element] = (cases + 1, previous, where)
        self.expect(
            worst <= 1.0,
            f"{name} {element} {case}: {wrong} wrong, worst {worst:.3g} of its bound at {place}",
        )

    def expect(self, holds: bool, message: str) -> None:
        self.checks += 1
        if not holds:
            self.failures += 1
            if self.failures <= MOST_PRINTED:
                print("FAILED", message, flush=True)

    def time(self, name: str, element: str, case: str, seconds: float, moved: int) -> None:
        """`moved` counts the bytes that must be read or written at least once."""
        floor = moved / self.bandwidth
        self.times.append(
            f"{name:24} {element:4} {case:28} {seconds * 1e6:9.2f} {floor * 1e6:9.2f} "
            f"{moved / seconds / 1e12:6.2f} {100 * floor / seconds:5.0f} %"
        )

    def finish(self) -> int:
        """Prints everything; the exit code."""
        print(f"\n{'kernel':24} type cases error/bound  worst case")
        for (name, element), (cases, worst, where) in self.errors.items():
            print(f"{name:24} {element:4} {cases:5} {worst:11.3f}  {where}")
        print(f"\n{torch.cuda.get_device_name()}, copy {self.bandwidth / 1e12:.2f} TB/s")
        print(f"{'kernel':24} type {'shape':28} {'us':>9} {'floor us':>9}   TB/s of floor")
        print("\n".join(self.times))
        print(f"{self.checks} checks, {self.failures} failed")
        return min(self.failures, 1)


def rotation(moved: int) -> int:
    """How many sets of buffers hold three times the second-level cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return int(np.clip(-(-3 * cache // moved), 2, 128))


def seconds_each(launches: Sequence[Launch], repetitions: int = 15, least: int = 16) -> float:
    """The median time of one launch, in a graph that goes through all of them at least once; so
    neither Python nor the gaps between launches count."""
    rounds = max(1, -(-least // len(launches)))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for launch in launches:
            launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for launch in launches:
                launch()
    times = []
    for _ in range(repetitions + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times[2:]) / (rounds * len(launches))


def copy_bandwidth() -> float:
    """Bytes read and written per second by large copies on the device."""
    pairs = [tuple(torch.randn(1 << 27, device="cuda") for _ in range(2)) for _ in range(2)]
    seconds = seconds_each([lambda p=p: p[0].copy_(p[1]) for p in pairs], least=4)
    return 2 * pairs[0][0].numel() * 4 / seconds
