"""Checks attention.cu and attention_any.cu on a GPU against f64, with bounds on the error that are
derived from the arithmetic, and times them against what bounds them and against PyTorch.

`--sweep` compiles other tile sizes and occupancies too and times those.
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
from torch import Tensor

LENGTHS = ((1, 7, 0, 64, 5, 6, 33, 130, 2), (0,), (512, 300), (128,) * 5, (31, 32, 33, 63, 65, 97))
TENSOR_CORE_SIZES = (16, 32, 64, 96, 128)
ODD_SIZES = (7, 20, 80, 100, 192)
# A tensor core's sum may be cut off instead of rounded.
TENSOR_CORE_ACCUMULATION = 2.0**-23
EXPONENTIAL = 2.0**-22
EXPONENTIALS_PER_CLOCK = 16


def starts_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], device="cuda").cumsum(0).int()


@dataclass
class Bias:
    """A table `[heads, 2 * reach + 1]`."""

    table: Tensor
    reach: int

    def expand(self, length: int) -> Tensor:
        """`[heads, queries, keys]`"""
        place = torch.arange(length, device="cuda")
        distance = (place[None, :] - place[:, None]).clamp(-self.reach, self.reach)
        return self.table.double()[:, distance + self.reach]


class Attention:
    """The kernels of one type and head size, launched as the backend does it."""

    def __init__(
        self, compiler: Compiler, element: str, head_size: int, heads: int, *defines: str
    ) -> None:
        self.element, self.head_size, self.heads = element, head_size, heads
        self.dtype = TYPES[element]
        older = torch.cuda.get_device_capability()[0] < 8
        fitting = head_size % 16 == 0 and head_size <= 128
        self.tensor_cores = fitting and element != "F32" and not (older and element == "BF16")
        file = "attention.cu" if self.tensor_cores else "attention_any.cu"
        self.kernels = Kernels(compiler, file, element, f"-DHEAD_SIZE={head_size}", *defines)
        large = (128,) if head_size <= 64 else ()
        self.row_choices = (64, *large) if self.tensor_cores else (32,)

    @property
    def hidden(self) -> int:
        return self.heads * self.head_size

    def name(self, rows: int) -> str:
        return f"attention_{rows if self.tensor_cores else 'any'}"

    def qkv(self, lengths: Sequence[int], factor: float = 1.0) -> Tensor:
        return random(sum(lengths), 3 * self.hidden, like=self.dtype) * factor

    def run(
        self,
        rows: int,
        qkv: Tensor,
        starts: Tensor,
        lengths: Sequence[int],
        output: Tensor,
        bias: Bias | None = None,
        packed: bool | None = None,
    ) -> None:
        """`packed` forces one way of counting slots."""
        each = -(-max(lengths) // rows)
        slots = sum(lengths) // rows + len(lengths)
        if not packed and (packed is False or each * len(lengths) <= slots):
            slots = each * len(lengths)
        else:
            each = 0
        block = 128
        if not self.tensor_cores:
            block = max(32, 1 << (self.head_size - 1).bit_length())
        if slots == 0:
            return
        extra = (bias.table, bias.reach) if bias else ()
        self.kernels.launch(
            f"vecmill_{self.name(rows)}{'_biased' if bias else ''}",
            slots * self.heads, block,
            qkv, starts, output, len(lengths), self.heads, each, *extra,
            shared=4 * (2 * bias.reach + 1) if bias else 0,
        )  # fmt: skip

    def expected(self, part: Tensor, bias: Bias | None) -> tuple[Tensor, Tensor]:
        """One sequence's result in f64, and the error that it may have."""
        length = len(part)
        q, k, v = part.double().view(length, 3, self.heads, self.head_size).unbind(1)
        scale = self.head_size**-0.5
        added = bias.expand(length) if bias else torch.zeros((), device="cuda").double()
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale + added
        sizes = torch.einsum("qhd,khd->hqk", q.abs(), k.abs()) * scale + added.abs()
        shifted = (scores - scores.amax(-1, keepdim=True)).exp()
        totals = shifted.sum(-1, keepdim=True)
        weights = shifted / totals
        result = torch.einsum("hqk,khd->hqd", weights, v)
        magnitude = torch.einsum("hqk,khd->hqd", weights, v.abs())
        accumulation = TENSOR_CORE_ACCUMULATION if self.tensor_cores else ACCUMULATION
        # An absolute error of a score is a relative error of its weight, and of the total.
        score_error = (self.head_size + 8) * accumulation * sizes.amax(-1, keepdim=True)
        relative = 2 * score_error + (2 * length + 12) * accumulation + 2 * EXPONENTIAL
        stored = ROUNDOFF[self.element]
        error = relative * magnitude
        if self.tensor_cores:
            underflow = UNDERFLOW[self.element] * v.abs().sum(0)[:, None] / totals
            error += stored * magnitude + underflow
        bound = error * (1 + stored) + stored * result.abs() + UNDERFLOW[self.element]
        return tuple(x.transpose(0, 1).reshape(length, -1) for x in (result, bound))


def relative_bias(heads: int, reach: int) -> Bias:
    return Bias(2 * torch.randn(heads, 2 * reach + 1, device="cuda"), reach)


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
    attention: Attention, model: str, lengths: Sequence[int], compare: bool, label: str = ""
) -> None:
    floors = Ceilings.measured().floors(attention, lengths)
    limit = max(floors, key=floors.__getitem__)
    columns = [f"{floors[name] * 1e6:8.1f}" for name in floors]
    for rows in attention.row_choices:

        def make(qkv: Tensor, starts: Tensor, output: Tensor, rows: int = rows) -> Launch:
            return lambda: attention.run(rows, qkv, starts, lengths, output)

        seconds = time_launches(attention, lengths, make)
        columns.append(f"{seconds * 1e6:8.1f} {100 * floors[limit] / seconds:3.0f} %")
    if len(attention.row_choices) == 1:
        columns.append(" " * 14)
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
    print(f"{'us':38}   memory  products       exp   64 rows  floor  128 rows  floor  PyTorch")


def time_all(compiler: Compiler, element: str, shapes: Sequence, compare: bool = True) -> None:
    for model, group in groupby(shapes, key=lambda shape: shape[0]):
        heads, head_size = MODELS[model]
        attention = Attention(compiler, element, head_size, heads)
        for _, lengths in group:
            time_shape(attention, model, lengths, compare)
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
                time_shape(attention, model, lengths, compare=False, label=" ".join(defines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvrtc", help="the library's path")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    arguments = parser.parse_args()
    compiler = Compiler(arguments.nvrtc)
    report = Report()
    for element in arguments.types:
        check_all(report, compiler, element)
        torch.cuda.empty_cache()
    if not arguments.no_times:
        report.bandwidth = Ceilings.measured().bytes
        header()
        for element in arguments.types:
            shapes = SHAPES if element != "F32" else (SHAPES[0], SHAPES[2], SHAPES[6])
            time_all(compiler, element, shapes)
    if arguments.sweep:
        header()
        sweep(compiler)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
