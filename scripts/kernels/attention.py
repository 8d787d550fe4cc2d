"""The attention kernels as the backend launches them, and what their results may be.

- `Attention`, attention.cu or attention_any.cu for one type and head size, with its reference in
  f64 and the error that each element may have
- `HopperAttention`, attention_sm90.cu in its place
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from compile import Compiler
from harness import ACCUMULATION, ROUNDOFF, TYPES, UNDERFLOW, Kernels, TensorMap, random
from torch import Tensor

# A tensor core's sum may be cut off instead of rounded.
TENSOR_CORE_ACCUMULATION = 2.0**-23
EXPONENTIAL = 2.0**-22


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


def count_slots(lengths: Sequence[int], rows: int, packed: bool | None) -> tuple[int, int]:
    """Slots, and those of each sequence, or 0 if they follow from `starts`."""
    each = -(-max(lengths) // rows)
    slots = sum(lengths) // rows + len(lengths)
    if not packed and (packed is False or each * len(lengths) <= slots):
        return each * len(lengths), each
    return slots, 0


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
        slots, each = count_slots(lengths, rows, packed)
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


class HopperAttention(Attention):
    """attention_sm90.cu; it takes no bias."""

    HEAD_SIZES = (32, 64)

    def __init__(
        self, compiler: Compiler, element: str, head_size: int, heads: int, *defines: str
    ) -> None:
        self.element, self.head_size, self.heads = element, head_size, heads
        self.dtype = TYPES[element]
        self.tensor_cores = True
        self.kernels = Kernels(
            compiler, "attention_sm90.cu", element, f"-DHEAD_SIZE={head_size}", *defines
        )
        self.row_choices = (64, 128, 256)
        self.backwards = False
        self.processors = torch.cuda.get_device_properties(0).multi_processor_count

    @staticmethod
    def runs() -> bool:
        return torch.cuda.get_device_capability() == (9, 0)

    def name(self, rows: int) -> str:
        return f"attention_sm90_{rows}"

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
        """From the other end each time: results must not depend on it."""
        assert bias is None
        self.backwards = not self.backwards
        slots, each = count_slots(lengths, rows, packed)
        if slots == 0 or len(qkv) == 0:
            return
        stage = 64 * self.head_size * 2
        rings, queries = 192 * 1024, 64 * 1024
        shared = rings + rings // stage * 16 + queries // stage * 16 + 1024
        self.kernels.launch(
            "vecmill_attention_sm90", min(slots * self.heads, self.processors), 640,
            TensorMap(qkv, 64, self.head_size), starts, output,
            len(lengths), self.heads, rows, slots, each, int(self.backwards),
            shared=shared,
        )  # fmt: skip
