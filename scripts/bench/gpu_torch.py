"""BERT as PyTorch runs it best, and as its users run it.

`Packed` is the best we could make: no padding, one product for queries, keys and values, everything
between two attentions compiled, all of it in one CUDA graph. Where lengths are equal it also tries
dense attention. `Eager` is the plain model of transformers with SDPA. Both take ids that are on the
device and leave vectors there: means, or with "cls" those of the first tokens, for which `Packed`
computes nothing else behind the last attention.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertModel

TABLES = ("word", "position", "token_type")
Attention = Callable[[Tensor], Tensor]
DENSE = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True)
class Shape:
    """A packed batch: rows of texts behind each other, perhaps rows of none at the end."""

    tokens: int
    texts: int
    longest: int

    @property
    def is_equal(self) -> bool:
        return self.tokens == self.texts * self.longest


class Batch:
    """Random ids on the device, and what of them belongs to which text."""

    def __init__(self, shape: Shape, lengths: list[int], vocabulary: int) -> None:
        self.shape, self.lengths = shape, lengths
        count = torch.tensor(lengths, device="cuda")
        ends = count.cumsum(0)
        # Rows of no text belong to one that nobody asks for.
        owners = torch.full((shape.tokens,), shape.texts, device="cuda")
        owners[: sum(lengths)] = torch.repeat_interleave(count)
        starts = torch.full((shape.texts + 1,), sum(lengths), dtype=torch.int32, device="cuda")
        starts[0], starts[1 : len(lengths) + 1] = 0, ends
        rows = torch.arange(shape.tokens, device="cuda")
        positions = torch.where(owners < shape.texts, rows - starts.long()[owners], 0)
        ids = torch.randint(vocabulary, (shape.tokens,), device="cuda")
        self.ids, self.positions, self.owners, self.starts = ids, positions, owners, starts

    def copy_(self, other: "Batch") -> None:
        for name in ("ids", "positions", "owners", "starts"):
            getattr(self, name).copy_(getattr(other, name))


class Eager:
    name = "PyTorch eager, SDPA"

    def __init__(self, bert: BertModel, pooling: str = "mean") -> None:
        self._bert, self._pooling = bert, pooling

    def __call__(self, batch: Batch) -> Tensor:
        ids = batch.ids.view(batch.shape.texts, batch.shape.longest)
        hidden = self._bert(input_ids=ids).last_hidden_state
        return hidden[:, 0] if self._pooling == "cls" else hidden.mean(1)


def embed(ids: Tensor, positions: Tensor, tables: list[Tensor], epsilon: float) -> Tensor:
    words, places, types, gain, bias = tables
    summed = F.embedding(ids, words) + F.embedding(positions, places) + types[0]
    return F.layer_norm(summed, gain.shape, gain, bias, epsilon)


def finish_layer(context: Tensor, x: Tensor, layer: list[Tensor], epsilon: float) -> Tensor:
    """From an attention's result to the layer's."""
    out, out_bias, gain, bias, up, up_bias, down, down_bias, last_gain, last_bias = layer
    x = F.layer_norm(F.linear(context, out, out_bias) + x, gain.shape, gain, bias, epsilon)
    wide = F.gelu(F.linear(x, up, up_bias))
    return F.layer_norm(
        F.linear(wide, down, down_bias) + x, gain.shape, last_gain, last_bias, epsilon
    )


def parameters(module: torch.nn.Module) -> list[Tensor]:
    return [module.weight.data, module.bias.data]


class Packed:
    """`mode` is torch.compile's, or None for no compiling."""

    def __init__(
        self, bert: BertModel, mode: str | None = None, pooling: str = "mean"
    ) -> None:
        self.pooling = pooling
        embeddings = bert.embeddings
        tables = [getattr(embeddings, f"{name}_embeddings").weight.data for name in TABLES]
        self._tables = [*tables, *parameters(embeddings.LayerNorm)]
        self._qkv, self._layers = [], []
        for layer in bert.encoder.layer:
            own, output = layer.attention.self, layer.attention.output
            stacked = [parameters(part) for part in (own.query, own.key, own.value)]
            self._qkv.append([torch.cat(part) for part in zip(*stacked)])
            last = layer.output
            modules = (
                output.dense,
                output.LayerNorm,
                layer.intermediate.dense,
                last.dense,
                last.LayerNorm,
            )
            self._layers.append([tensor for module in modules for tensor in parameters(module)])
        self._heads = bert.config.num_attention_heads
        self._epsilon = bert.config.layer_norm_eps
        compiled = (lambda f: torch.compile(f, mode=mode, dynamic=False)) if mode else lambda f: f
        self._embed, self._finish_layer = compiled(embed), compiled(finish_layer)

    def __call__(self, batch: Batch, attention: Attention) -> Tensor:
        x = self._embed(batch.ids, batch.positions, self._tables, self._epsilon)
        for index, (qkv, layer) in enumerate(zip(self._qkv, self._layers)):
            context = attention(F.linear(x, *qkv))
            if self.pooling == "cls" and index + 1 == len(self._layers):
                # Texts that are not there begin behind the last row.
                first = batch.starts[:-1].long().clamp(max=batch.shape.tokens - 1)
                context, x = context[first], x[first]
            x = self._finish_layer(context, x, layer, self._epsilon)
        return x

    def dense_attention(self, shape: Shape, backend: SDPBackend) -> Attention:
        def attend(qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(shape.texts, shape.longest, 3, self._heads, -1).permute(
                2, 0, 3, 1, 4
            )
            with sdpa_kernel(backend):
                context = F.scaled_dot_product_attention(q, k, v)
            return context.transpose(1, 2).reshape(shape.tokens, -1)

        return attend

    def packed_attention(self, shape: Shape, starts: Tensor) -> Attention:
        from torch.nn.attention.varlen import varlen_attn

        def attend(qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(shape.tokens, 3, self._heads, -1).unbind(1)
            context = varlen_attn(q, k, v, starts, starts, shape.longest, shape.longest)
            return context.reshape(shape.tokens, -1)

        return attend


class Graphed:
    """A packed encoder in a CUDA graph that serves all batches of a shape: they are copied into
    `batch`."""

    def __init__(self, packed: Packed, batch: Batch, attention: str = "packed") -> None:
        shape = batch.shape
        if attention == "packed":
            attend = packed.packed_attention(shape, batch.starts)
        else:
            attend = packed.dense_attention(shape, DENSE[attention])
        self._batch = batch
        pool = (lambda rows: rows) if packed.pooling == "cls" else self._mean
        self._graph, self._output = captured(lambda: pool(packed(batch, attend)))

    def _mean(self, hidden: Tensor) -> Tensor:
        batch, shape = self._batch, self._batch.shape
        if shape.is_equal:
            return hidden.view(shape.texts, shape.longest, -1).mean(1)
        sums = torch.zeros(shape.texts + 1, hidden.shape[1], device="cuda")
        sums.index_add_(0, batch.owners, hidden.float())
        return sums[:-1] / batch.starts.diff().clamp(min=1)[:, None]

    def __call__(self, batch: Batch) -> Tensor:
        self._batch.copy_(batch)
        return self.replay()

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._output


def captured(work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of the work, and where its result will be. The work runs a few times before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()
    return graph, output
