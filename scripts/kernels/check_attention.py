"""Checks the attention kernels on a GPU against f64, with bounds on the error that are derived from
the arithmetic, and times them against what bounds them and against PyTorch.

`--hopper` checks attention_sm90.cu alone and times it beside attention.cu; without, it is part of
the whole on such a GPU. `--sweep` compiles other tile sizes and occupancies of attention.cu too and
times those.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise, product

import cupy
import numpy as np
import torch
from attention import Attention, Bias, HopperAttention, relative_bias, starts_of
from compile import Compiler
from harness import (
    TYPES,
    Launch,
    Report,
    copy_bandwidth,
    poisoned,
    random,
    rotation,
    seconds_each,
)
from torch import Tensor

LENGTHS = ((1, 7, 0, 64, 5, 6, 33, 130, 2), (0,), (512, 300), (128,) * 5, (31, 32, 33, 63, 65, 97))
# Around the borders of attention_sm90.cu's tiles and jobs, and more keys than its ring has stages.
HOPPER_LENGTHS = ((63, 64, 65, 0, 127, 128, 129), (255, 256, 257, 1), (1024, 3, 1023), (0, 0, 5, 0))
TENSOR_CORE_SIZES = (16, 32, 64, 96, 128)
ODD_SIZES = (7, 20, 80, 100, 192)
EXPONENTIALS_PER_CLOCK = 16


def check(
    report: Report, attention: Attention, lengths: Sequence[int], bias: Bias | None, factor: float
) -> None:
    starts = starts_of(lengths)
    qkv = attention.qkv(lengths, factor)
    parts = [qkv[a:b] for a, b in pairwise(starts.tolist())]
    nothing = torch.empty(0, attention.hidden, dtype=torch.float64, device="cuda")
    references = [attention.expected(part, bias) for part in parts if len(part)]
    expected, bound = (torch.cat([nothing, *(r[i] for r in references)]) for i in range(2))
    case = f"{list(lengths)[:9]} {attention.heads} x {attention.head_size}"
    case += f" reach {bias.reach}" if bias else ""
    first = None
    for rows, packed in product(attention.row_choices, (False, True)):
        output = poisoned(len(qkv), attention.hidden, dtype=attention.dtype)
        attention.run(rows, qkv, starts, lengths, output, bias, packed)
        name = attention.name(rows) + ("_biased" if bias else "")
        report.error(name, attention.element, case, output, expected, bound)
        first = output if first is None else first
        report.expect(torch.equal(first, output), f"{name} {case}: bits depend on the grid")
    check_neighbours(report, attention, (qkv, starts, lengths, bias), first, case)


def check_neighbours(
    report: Report, attention: Attention, batch: tuple, together: Tensor, case: str
) -> None:
    """A sequence alone, and beside neighbours of NaN, gives the same bits."""
    qkv, starts, lengths, bias = batch
    for index, (begin, end) in enumerate(pairwise(starts.tolist())):
        if begin == end:
            continue
        rows = attention.row_choices[index % len(attention.row_choices)]
        length = end - begin
        alone = poisoned(length, attention.hidden, dtype=attention.dtype)
        own = torch.tensor([0, length], device="cuda").int()
        attention.run(rows, qkv[begin:end].clone(), own, [length], alone, bias)
        beside = torch.full_like(qkv, float("nan"))
        beside[begin:end] = qkv[begin:end]
        output = poisoned(len(qkv), attention.hidden, dtype=attention.dtype)
        attention.run(rows, beside, starts, lengths, output, bias)
        same = torch.equal(alone, together[begin:end])
        same &= torch.equal(output[begin:end], together[begin:end])
        report.expect(same, f"{attention.element} {case}: sequence {index} depends on others")


def lognormal(tokens: int) -> list[int]:
    """Lengths of median 40, at most 512."""
    draw = np.random.default_rng(7)
    lengths: list[int] = []
    while (rest := tokens - sum(lengths)) > 0:
        length = int(np.clip(round(draw.lognormal(np.log(40), 0.9)), 1, 512))
        lengths.append(min(length, rest))
    return lengths


def check_all(report: Report, compiler: Compiler, element: str) -> None:
    mixed = tuple(lognormal(2000))
    for head_size in (*TENSOR_CORE_SIZES, *ODD_SIZES):
        attention = Attention(compiler, element, head_size, heads=3)
        for lengths in (*LENGTHS, mixed):
            check(report, attention, lengths, None, factor=1.0)
            check(report, attention, lengths, relative_bias(3, 128), factor=1.0)
        # Weights that are nearly all zero, and a bias whose reach ends within a tile.
        check(report, attention, LENGTHS[0], relative_bias(3, 5), factor=3.0)
    attention = Attention(compiler, element, 64, heads=1)
    check(report, attention, (8269,), None, factor=1.0)


def check_hopper(report: Report, compiler: Compiler, element: str) -> None:
    for head_size in HopperAttention.HEAD_SIZES:
        attention = HopperAttention(compiler, element, head_size, heads=3)
        for lengths in ((128,) * 5, *LENGTHS, *HOPPER_LENGTHS, tuple(lognormal(2000))):
            for factor in (1.0, 3.0):
                check(report, attention, lengths, None, factor)
        attention.heads = 1
        check(report, attention, (8269,), None, factor=1.0)
        # Several jobs for each block.
        attention.heads = 12
        for lengths in ((128,) * 70, tuple(lognormal(9000))):
            check(report, attention, lengths, None, factor=1.0)
        print(f"checked attention_sm90 {element} {head_size}", flush=True)


# ---- Times ----

MODELS = {"MiniLM": (12, 32), "bge-base": (12, 64), "bge-large": (16, 64)}
SHAPES = (
    ("MiniLM", (128,) * 256),
    ("MiniLM", (512,) * 64),
    ("MiniLM", tuple(lognormal(32768))),
    ("MiniLM", (16,) * 32),
    ("MiniLM", (128,)),
    ("MiniLM", (8,)),
    ("bge-base", (128,) * 256),
    ("bge-large", (128,) * 256),
    ("bge-large", (512,) * 64),
    ("bge-large", tuple(lognormal(32768))),
    ("bge-large", (512,)),
)
HOPPER_SHAPES = (
    ("MiniLM", (128,) * 1024),
    ("MiniLM", tuple(lognormal(131072))),
    *SHAPES[1:2],
    *SHAPES[3:],
    ("bge-large", (16,) * 32),
)


@dataclass
class Ceilings:
    """What the device can do per second, measured but for the exponentials."""

    bytes: float
    operations: float
    exponentials: float

    @staticmethod
    @cache
    def measured() -> "Ceilings":
        size = 8192
        a, b = (random(size, size, like=torch.float16) for _ in range(2))
        out = torch.empty_like(a)
        seconds = seconds_each([lambda: torch.mm(a, b, out=out)], least=4)
        clock_rate = 13
        kilohertz = cupy.cuda.runtime.deviceGetAttribute(clock_rate, 0)
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        exponentials = EXPONENTIALS_PER_CLOCK * processors * kilohertz * 1e3
        return Ceilings(copy_bandwidth(), 2 * size**3 / seconds, exponentials)

    def floors(self, attention: Attention, lengths: Sequence[int]) -> dict[str, float]:
        pairs = attention.heads * sum(n * n for n in lengths)
        moved = 4 * sum(lengths) * attention.hidden * attention.dtype.itemsize
        return {
            "memory": moved / self.bytes,
            "products": 4 * pairs * attention.head_size / self.operations,
            "exp": pairs / self.exponentials,
        }


def describe(model: str, lengths: Sequence[int]) -> str:
    heads, head_size = MODELS[model]
    equal = len(set(lengths)) == 1
    count = f"{len(lengths)} x {lengths[0]}" if equal else f"{sum(lengths)} mixed"
    return f"{model} {count}, {heads} x {head_size}"


def time_launches(
    attention: Attention, lengths: Sequence[int], make: Callable[[Tensor, Tensor, Tensor], Launch]
) -> float:
    """`make(qkv, starts, output)`; sets of buffers take turns, so that none is in the cache."""
    starts = starts_of(lengths)
    moved = 4 * sum(lengths) * attention.hidden * attention.dtype.itemsize
    launches = []
    for _ in range(rotation(moved)):
        qkv = attention.qkv(lengths)
        output = torch.empty(len(qkv), attention.hidden, dtype=qkv.dtype, device="cuda")
        launches.append(make(qkv, starts, output))
    return seconds_each(launches)


def peers(attention: Attention, lengths: Sequence[int]) -> dict[str, Callable]:
    """PyTorch's ways to the same result."""
    shape = (3, attention.heads, attention.head_size)

    def padded(qkv: Tensor, _starts: Tensor, _output: Tensor) -> Launch:
        parts = qkv.view(len(lengths), lengths[0], *shape).permute(2, 0, 3, 1, 4).unbind(0)
        return lambda: torch.nn.functional.scaled_dot_product_attention(*parts)

    def variable(qkv: Tensor, starts: Tensor, _output: Tensor) -> Launch:
        from torch.nn.attention.varlen import varlen_attn

        parts = qkv.view(-1, *shape).unbind(1)
        longest = max(lengths)
        return lambda: varlen_attn(*parts, starts, starts, longest, longest)

    chosen = {"varlen": variable}
    if len(set(lengths)) == 1:
        chosen["sdpa"] = padded
    return chosen


def time_shape(
    kernels: Sequence[Attention],
    model: str,
    lengths: Sequence[int],
    compare: bool,
    label: str = "",
) -> None:
    attention = kernels[0]
    floors = Ceilings.measured().floors(attention, lengths)
    limit = max(floors, key=floors.__getitem__)
    columns = [f"{floors[name] * 1e6:8.1f}" for name in floors]
    for kernel, rows in ((kernel, rows) for kernel in kernels for rows in kernel.row_choices):

        def make(qkv: Tensor, starts: Tensor, output: Tensor, chosen: tuple = (kernel, rows)):
            kernel, rows = chosen
            return lambda: kernel.run(rows, qkv, starts, lengths, output)

        seconds = time_launches(attention, lengths, make)
        columns.append(f"{kernel.name(rows).removeprefix('attention_'):>8} {seconds * 1e6:6.1f}")
        columns.append(f"{100 * floors[limit] / seconds:3.0f} %")
    for name, peer in peers(attention, lengths).items() if compare else ():
        try:
            seconds = time_launches(attention, lengths, peer)
            columns.append(f"{name} {seconds * 1e6:.1f}")
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            columns.append(f"{name}: {str(error).splitlines()[0][:60]}")
    print(f"{describe(model, lengths):32} {attention.element:4} {'  '.join(columns)} {label}")


def header() -> None:
    ceilings = Ceilings.measured()
    print(
        f"\n{torch.cuda.get_device_name()}: {ceilings.bytes / 1e12:.2f} TB/s, "
        f"{ceilings.operations / 1e12:.0f} TFLOP/s (matrix products), "
        f"{ceilings.exponentials / 1e12:.2f} T exponentials/s"
    )
    print(f"{'us':38}   memory  products       exp   kernels by rows, % of the highest; PyTorch")


def time_all(compiler: Compiler, element: str, shapes: Sequence, compare: bool = True) -> None:
    for model, group in groupby(shapes, key=lambda shape: shape[0]):
        heads, head_size = MODELS[model]
        kernels = [Attention(compiler, element, head_size, heads)]
        if HopperAttention.runs() and element != "F32":
            kernels.append(HopperAttention(compiler, element, head_size, heads))
        for _, lengths in group:
            time_shape(kernels, model, lengths, compare)
            torch.cuda.empty_cache()


def sweep(compiler: Compiler) -> None:
    """Tiles in shared memory against registers per thread."""
    tiles = ((32, 4), (32, 2), (64, 2))
    occupancies = {"MiniLM": ((5, 3), (6, 4), (7, 4)), "bge-large": ((4, 2), (5, 3))}
    for model, blocks in occupancies.items():
        heads, head_size = MODELS[model]
        for (keys, stages), (small, large) in product(tiles, blocks):
            defines = (f"-DKEYS={keys}", f"-DSTAGES={stages}")
            defines += (f"-DBLOCKS_64={small}", f"-DBLOCKS_128={large}")
            attention = Attention(compiler, "F16", head_size, heads, *defines)
            for lengths in (lengths for name, lengths in SHAPES if name == model):
                time_shape([attention], model, lengths, compare=False, label=" ".join(defines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvrtc", help="the library's path")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--hopper", action="store_true")
    arguments = parser.parse_args()
    compiler = Compiler(arguments.nvrtc)
    report = Report()
    for element in arguments.types:
        if not arguments.hopper:
            check_all(report, compiler, element)
        if HopperAttention.runs() and element != "F32":
            check_hopper(report, compiler, element)
        torch.cuda.empty_cache()
    if not arguments.no_times:
        report.bandwidth = Ceilings.measured().bytes
        header()
        for element in arguments.types:
            shapes = SHAPES if element != "F32" else (SHAPES[0], SHAPES[2], SHAPES[6])
            shapes = HOPPER_SHAPES if arguments.hopper else shapes
            time_all(compiler, element, shapes)
    if arguments.sweep:
        header()
        sweep(compiler)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
