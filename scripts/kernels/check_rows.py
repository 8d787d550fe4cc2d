"""Checks and times the kernels that work on rows: norm.cu, pool.cu and activation.cu.

Every kernel in every type, at awkward sizes, on fresh random input, against f64; that a row's bits
don't depend on its neighbours; then times at real shapes beside the floor that memory sets. The
bounds count roundings: `ACCUMULATION` for each operation in f32 on the way, the type's own for the
result.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise

import torch
from compile import Compiler
from harness import (
    ACCUMULATION,
    ROUNDOFF,
    TYPES,
    UNDERFLOW,
    Kernels,
    Launch,
    Report,
    copy_bandwidth,
    poisoned,
    random,
    rotation,
    seconds_each,
)

EPSILON = 1e-12
NORM_COLUMNS = (4, 7, 8, 32, 48, 100, 250, 256, 384, 520, 768, 1000, 1024, 1032, 2048, 4096, 4104)
POOL_COLUMNS = (7, 32, 48, 100, 384, 768, 1024)
LENGTHS = ([1], [0], [512], [0, 5, 0, 128, 1, 31, 32, 33, 256, 257, 700, 0])
Tensor = torch.Tensor


class Norm:
    """norm.cu: gain, bias and what fits one number of columns."""

    def __init__(self, kernels: Kernels, element: str, columns: int) -> None:
        self.kernels, self.element, self.columns = kernels, element, columns
        self.dtype = TYPES[element]
        self.gain = 1 + 0.2 * torch.randn(columns, device="cuda")
        self.bias = 0.2 * torch.randn(columns, device="cuda")
        vector = 16 // self.dtype.itemsize
        fits = [c for c in (256, 512, 768, 1024, 4096) if columns <= c and columns % vector == 0]
        self.capacity = fits[0] if fits else "any"
        self.rows_per_block = 1 if self.capacity == 4096 else 4

    def run(self, name: str, leading: tuple, output: Tensor, blocks: int = 1 << 30) -> None:
        rows = output.shape[0]
        blocks = min(blocks, -(-rows // self.rows_per_block))
        self.kernels.launch(
            f"vecmill_{name}_{self.capacity}", blocks, 128,
            *leading, self.gain, self.bias, output, None, rows, self.columns, EPSILON,
            *((int(rows > 100),) if name == "add_norm" else ()),  # backwards
        )  # fmt: skip

    def expected(self, *addends: Tensor) -> tuple[Tensor, Tensor]:
        """The result in f64, and the error that it may have."""
        x = sum(a.double() for a in addends)
        magnitude = sum(a.double().abs() for a in addends).amax(-1, keepdim=True)
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt()
        unit = centred / deviation
        result = unit * self.gain.double() + self.bias.double()
        serial = 32 if self.capacity != "any" else -(-self.columns // 32)
        additions = (serial + 10) * ACCUMULATION
        shift = additions * magnitude / deviation
        error = shift + unit.abs() * (shift + additions)
        error = error * self.gain.double().abs()
        error += 2 * ACCUMULATION * (result.abs() + self.bias.abs())
        roundoff = ROUNDOFF[self.element]
        return result, error * (1 + roundoff) + roundoff * result.abs() + UNDERFLOW[self.element]


def check_add_norm(report: Report, norm: Norm) -> None:
    for rows in (1, 3, 130):
        # Every third row far from zero, where a variance by squares would cancel.
        offset = 30.0 * (torch.arange(rows, device="cuda") % 3 == 1)[:, None]
        x = (torch.randn(rows, norm.columns, device="cuda") + offset).to(norm.dtype)
        residual = random(rows, norm.columns, like=norm.dtype)
        expected, bound = norm.expected(x, residual)
        case = f"{rows} x {norm.columns} ({norm.capacity})"
        for blocks in (1 << 30, 2):
            output = poisoned(rows, norm.columns, dtype=norm.dtype)
            norm.run("add_norm", (x, residual), output, blocks)
            report.error("add_norm", norm.element, case, output, expected, bound)
        alone = poisoned(1, norm.columns, dtype=norm.dtype)
        norm.run("add_norm", (x[-1:].clone(), residual[-1:].clone()), alone)
        report.expect(torch.equal(alone[0], output[-1]), f"add_norm {case}: a row alone differs")


def check_embed(report: Report, norm: Norm) -> None:
    words, places = (random(n, norm.columns, like=norm.dtype) for n in (1000, 512))
    for rows, types in ((1, None), (77, None), (130, random(2, norm.columns, like=norm.dtype))):
        ids = torch.randint(0, 1000, (rows,), device="cuda", dtype=torch.int32)
        positions = torch.randint(0, 512, (rows,), device="cuda", dtype=torch.int32)
        kinds = torch.randint(0, 2, (rows,), device="cuda", dtype=torch.int32)
        addends = [words[ids], places[positions]]
        if types is not None:
            addends.append(types[kinds])
            positions |= kinds << 31
        expected, bound = norm.expected(*addends)
        for blocks in (1 << 30, 2):
            output = poisoned(rows, norm.columns, dtype=norm.dtype)
            norm.run("embed", (ids, positions, words, places, types), output, blocks)
            case = f"{rows} x {norm.columns} ({norm.capacity})"
            report.error("embed", norm.element, case, output, expected, bound)


def run_pool(
    kernels: Kernels, kind: str, x: Tensor, starts: Tensor, output: Tensor, first: int = 0
) -> None:
    sequences, width = output.shape
    columns = x.shape[1]
    vector = 16 // x.dtype.itemsize
    tile = 8 * vector if columns % vector == 0 else 32
    blocks = sequences * (1 if kind in ("cls", "last") else -(-columns // tile))
    kernels.launch(f"vecmill_pool_{kind}", blocks, 256, x, starts, output, columns, width, first)


def pooled(kind: str, x: Tensor, element: str) -> tuple[Tensor, Tensor]:
    """One sequence's result in f64, and the error that it may have."""
    if len(x) == 0:
        zeros = torch.zeros(x.shape[1], dtype=torch.float64, device="cuda")
        return zeros, zeros
    x = x.double()
    places = torch.arange(1, len(x) + 1, dtype=torch.float64, device="cuda")[:, None]
    weights = {
        "mean": torch.ones_like(places) / len(x),
        "mean_sqrt": torch.ones_like(places) / len(x) ** 0.5,
        "weighted": places / places.sum(),
    }
    if kind not in weights:
        result = {"max": x.amax(0), "cls": x[0], "last": x[-1]}[kind]
        return result, torch.zeros_like(result)
    result = (x * weights[kind]).sum(0)
    vector = 8 if element != "F32" else 4
    rows = 32 if x.shape[1] % vector == 0 else 8
    error = (-(-len(x) // rows) + 14) * ACCUMULATION * (x.abs() * weights[kind]).sum(0)
    return result, error + ROUNDOFF[element] * (result.abs() + error) + UNDERFLOW[element]


def check_pool(report: Report, kernels: Kernels, element: str, columns: int) -> None:
    for lengths in LENGTHS:
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        # Mostly negative: a maximum that starts at zero would show.
        x = random(sum(lengths), columns, like=TYPES[element]) - 2
        parts = [x[a:b] for a, b in pairwise(starts)]
        for kind in ("mean", "mean_sqrt", "weighted", "max", "cls", "last"):
            references = [pooled(kind, part, element) for part in parts]
            expected, bound = (torch.stack(r) for r in zip(*references, strict=True))
            output = poisoned(len(lengths), columns, dtype=TYPES[element])
            run_pool(kernels, kind, x, starts.cuda(), output)
            case = f"{len(lengths)} of {sum(lengths)} x {columns}"
            report.error(f"pool_{kind}", element, case, output, expected, bound)
            longest = max(range(len(lengths)), key=lengths.__getitem__)
            alone = poisoned(1, columns, dtype=TYPES[element])
            own = torch.tensor([0, lengths[longest]], dtype=torch.int32, device="cuda")
            run_pool(kernels, kind, parts[longest].clone(), own, alone)
            report.expect(
                torch.equal(alone[0], output[longest]),
                f"pool_{kind} {element} {case}: a sequence alone differs",
            )
            beside = torch.zeros(len(lengths), 3 * columns, dtype=TYPES[element], device="cuda")
            run_pool(kernels, kind, x, starts.cuda(), beside, columns)
            between = beside[:, columns : 2 * columns]
            report.expect(
                torch.equal(between, output) and beside.count_nonzero() == between.count_nonzero(),
                f"pool_{kind} {element} {case}: in columns of a wider row it differs",
            )
    x[0, 0] = float("nan")
    run_pool(kernels, "max", x, starts.cuda(), output)
    report.expect(bool(output[1, 0].isnan()), f"pool_max {element}: NaN is lost")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # By the complementary error function: 1 + erf cancels at negative x, in f64 too.
    "gelu": lambda x: x * torch.special.erfc(-x * 0.5**0.5) / 2,
    "gelu_tanh": lambda x: x * torch.sigmoid(twice_u(x)),
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
}


def twice_u(x: Tensor) -> Tensor:
    return 2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)


def run_activation(kernels: Kernels, name: str, values: Tensor) -> None:
    count = torch.tensor(values.numel(), dtype=torch.uint64).numpy()[()]
    blocks = -(-values.numel() // (512 * (16 // values.dtype.itemsize)))
    kernels.launch(f"vecmill_{name}", blocks, 256, values, count)


def check_activations(report: Report, kernels: Kernels, element: str) -> None:
    dtype = TYPES[element]
    if element == "F32":
        grid = torch.logspace(-30, 2.5, 5000, device="cuda")
        every = torch.cat([grid, -grid, 3 * torch.randn(100_001, device="cuda")])
    else:
        every = torch.arange(-32768, 32768, device="cuda").to(torch.int16).view(dtype)
        every = every[every.isfinite()]
    for name, function in ACTIVATIONS.items():
        for count in (every.numel(), 1, 9, 4095, 4097):
            x = every if count == every.numel() else random(count, like=dtype)
            expected = function(x.double())
            size = expected.abs()
            if element == "F32":
                # An error of the exponent's argument grows with the argument.
                grown = 6 * twice_u(x.double()).abs() if name == "gelu_tanh" else 0
                # The logistic function, which x multiplies, may underflow.
                bound = (12 + grown) * ACCUMULATION * size + UNDERFLOW[element] * x.double().abs()
            else:
                least = (2.0**-14 * size.clamp(min=2.0**-7) if name == "gelu" else
                         2.0**-16 * size.clamp(min=2.0**-25))
                bound = least + ROUNDOFF[element] * size
            output = poisoned(count, dtype=dtype)
            output.copy_(x)
            run_activation(kernels, name, output)
            bound = 1.01 * bound + UNDERFLOW[element]
            report.error(name, element, f"{count} values", output, expected, bound)
        broken = torch.full((8,), float("nan"), dtype=dtype, device="cuda")
        run_activation(kernels, name, broken)
        report.expect(bool(broken.isnan().all()), f"{name} {element}: NaN is lost")


def time_case(
    report: Report, name: str, element: str, case: str, moved: int, make: Callable[[], Launch]
) -> None:
    launches = [make() for _ in range(rotation(moved))]
    report.time(name, element, case, seconds_each(launches), moved)


def time_norms(report: Report, kernels: Kernels, element: str, sweep: bool) -> None:
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    shapes = [(1, 384), (32, 384), (512, 1024)]
    shapes += [(32768, 384), (32768, 768), (32768, 1024), (8192, 4096), (32768, 100)]
    for rows, columns in shapes:
        norm = Norm(kernels, element, columns)
        moved = 3 * rows * columns * norm.dtype.itemsize
        for factor in (8, 16, 32, 1 << 20) if sweep and rows == 32768 else (16,):

            def make(norm=norm, rows=rows, blocks=factor * processors) -> Launch:
                x, residual = (random(rows, norm.columns, like=norm.dtype) for _ in range(2))
                output = torch.empty_like(x)
                return lambda: norm.run("add_norm", (x, residual), output, blocks)

            label = "full grid" if factor > 32 else f"grid {factor}/SM"
            time_case(report, "add_norm", element, f"{rows} x {columns}, {label}", moved, make)


def time_embed(report: Report, kernels: Kernels, element: str) -> None:
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for rows, columns in ((32, 384), (32768, 384), (32768, 1024)):
        norm = Norm(kernels, element, columns)
        words, places = (random(n, columns, like=norm.dtype) for n in (30522, 512))
        types = random(columns, like=norm.dtype)

        def make(norm=norm, rows=rows, tables=(words, places, types)) -> Launch:
            ids = torch.randint(0, 30522, (rows,), device="cuda", dtype=torch.int32)
            positions = (torch.arange(rows, device="cuda") % 128).int()
            output = torch.empty(rows, norm.columns, dtype=norm.dtype, device="cuda")
            leading = (ids, positions, *tables)
            return lambda: norm.run("embed", leading, output, 16 * processors)

        # Ids drawn with repetition: each different word is read once at least.
        different = 30522 * (1 - (1 - 1 / 30522) ** rows)
        moved = int((rows + different + 128) * columns * norm.dtype.itemsize) + 8 * rows
        time_case(report, "embed", element, f"{rows} x {columns}", moved, make)


def time_pools(report: Report, kernels: Kernels, element: str) -> None:
    dtype = TYPES[element]
    shapes = ((1024, 128, 384), (256, 128, 1024), (1, 512, 1024), (1, 16, 384), (32, 40, 384))
    for sequences, length, columns in shapes:
        for kind in ("mean", "max", "cls"):

            def make(kind=kind, shape=(sequences, length, columns)) -> Launch:
                sequences, length, columns = shape
                x = random(sequences * length, columns, like=dtype)
                starts = (torch.arange(sequences + 1, device="cuda") * length).int()
                output = torch.empty(sequences, columns, device="cuda", dtype=dtype)
                return lambda: run_pool(kernels, kind, x, starts, output)

            read = sequences * columns * (1 if kind == "cls" else length)
            moved = (read + sequences * columns) * dtype.itemsize
            case = f"{sequences} x {length} x {columns}"
            time_case(report, f"pool_{kind}", element, case, moved, make)


def time_activations(report: Report, kernels: Kernels, element: str) -> None:
    dtype = TYPES[element]
    for rows, columns in ((32, 1536), (32768, 1536), (32768, 4096)):
        for name in ACTIVATIONS if columns == 4096 else ("gelu",):

            def make(name=name, rows=rows, columns=columns) -> Launch:
                values = random(rows, columns, like=dtype)
                return lambda: run_activation(kernels, name, values)

            moved = 2 * rows * columns * dtype.itemsize
            time_case(report, name, element, f"{rows} x {columns}", moved, make)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvrtc", help="the library's path")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--no-times", action="store_true")
    arguments = parser.parse_args()
    compiler = Compiler(arguments.nvrtc)
    report = Report()
    if not arguments.no_times:
        report.bandwidth = copy_bandwidth()
    for element in arguments.types:
        norms, pools, activations = (
            Kernels(compiler, file, element) for file in ("norm.cu", "pool.cu", "activation.cu")
        )
        for columns in NORM_COLUMNS:
            check_add_norm(report, Norm(norms, element, columns))
            check_embed(report, Norm(norms, element, columns))
        for columns in POOL_COLUMNS:
            check_pool(report, pools, element, columns)
        check_activations(report, activations, element)
        if not arguments.no_times:
            time_norms(report, norms, element, sweep=element == "F16")
            time_embed(report, norms, element)
            time_pools(report, pools, element)
            time_activations(report, activations, element)
        torch.cuda.empty_cache()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
