"""vecmill on a GPU beside PyTorch, for families with rotary positions and gates: ModernBERT-base and
NomicBERT-base by the shapes of gpu_models.py, equal lengths, 32,768 tokens a batch, f16, in one call:

    python scripts/bench/gpu_models.py MODELS --tokenizer FOLDER --models modernbert-base nomic-base
    python scripts/bench/gpu_families.py path/to/vecmill-bench MODELS --json out.jsonl

For each model and length vecmill runs before and after its peers: transformers with SDPA, eager and
compiled; the best that we could make of PyTorch (packed, window attention that skips, all between two
attentions compiled, one CUDA graph); and the matrix products alone, which are the floor. Peers have
their ids, positions and cosines on the device before the clock starts. A peer that fails is named, and
the others go on. The table comes last.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_timing import windows
from gpu_torch import Batch, Shape, captured
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoModel

TOKENS = 32_768
BATCHES = 4
FULL = (-1, -1)
LEAST_COSINE = 0.999


@dataclass
class Block:
    """A layer's tensors; norms are pairs of gain and bias, or None where there is none."""

    first_norm: tuple | None
    qkv: Tensor
    out: Tensor
    second_norm: tuple
    gate_up: Tensor
    down: Tensor
    last_norm: tuple | None
    window: tuple[int, int]
    theta: float


@dataclass
class Body:
    words: Tensor
    types: Tensor | None
    norm: tuple
    blocks: list[Block]
    final_norm: tuple | None
    heads: int
    epsilon: float
    activation: Callable[[Tensor], Tensor]
    pre_norm: bool


def modernbert(model: torch.nn.Module) -> Body:
    config, state = model.config, model.state_dict()
    reach = config.local_attention // 2
    blocks = []
    for i, kind in enumerate(config.layer_types):
        name = f"layers.{i}."
        gain = state.get(name + "attn_norm.weight")
        # What transformers calls the input comes first, and is activated: the gate.
        blocks.append(
            Block(
                None if gain is None else (gain, None),
                state[name + "attn.Wqkv.weight"],
                state[name + "attn.Wo.weight"],
                (state[name + "mlp_norm.weight"], None),
                state[name + "mlp.Wi.weight"],
                state[name + "mlp.Wo.weight"],
                None,
                (reach, reach) if kind == "sliding_attention" else FULL,
                config.rope_parameters[kind]["rope_theta"],
            )
        )
    words, norm = state["embeddings.tok_embeddings.weight"], (state["embeddings.norm.weight"], None)
    final = (state["final_norm.weight"], None)
    heads = config.num_attention_heads
    return Body(words, None, norm, blocks, final, heads, config.norm_eps, F.gelu, pre_norm=True)


def nomic(model: torch.nn.Module) -> Body:
    config, state = model.config, model.state_dict()
    both = lambda name: (state[name + ".weight"], state[name + ".bias"])  # noqa: E731
    blocks = []
    for i in range(config.num_hidden_layers):
        name = f"layers.{i}."
        parts = [state[f"{name}self_attn.{part}_proj.weight"] for part in "qkv"]
        gate_up = [state[f"{name}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        blocks.append(
            Block(
                None,
                torch.cat(parts),
                state[name + "self_attn.o_proj.weight"],
                both(name + "post_attention_layernorm"),
                torch.cat(gate_up),
                state[name + "mlp.down_proj.weight"],
                both(name + "post_mlp_layernorm"),
                FULL,
                config.rope_parameters["rope_theta"],
            )
        )
    words = state["embeddings.word_embeddings.weight"]
    types = state["embeddings.token_type_embeddings.weight"][0]
    norm, heads = both("embeddings.LayerNorm"), config.num_attention_heads
    epsilon = config.layer_norm_eps
    return Body(words, types, norm, blocks, None, heads, epsilon, F.silu, pre_norm=False)


BODIES = {"modernbert": modernbert, "nomic_bert": nomic}


def normalise(x: Tensor, norm: tuple | None, epsilon: float) -> Tensor:
    return x if norm is None else F.layer_norm(x, norm[0].shape, *norm, epsilon)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat((low * cosines - high * sines, high * cosines + low * sines), -1)


class Packed:
    """`mode` is torch.compile's, or None for no compiling."""

    def __init__(self, body: Body, mode: str | None) -> None:
        self._body = body
        compiled = (lambda f: torch.compile(f, mode=mode, dynamic=False)) if mode else lambda f: f
        self._project, self._finish = compiled(self._project), compiled(self._finish)

    def _project(self, x: Tensor, norm: tuple | None, qkv: Tensor, cosines: Tensor, sines: Tensor):
        heads = F.linear(normalise(x, norm, self._body.epsilon), qkv)
        q, k, v = heads.view(x.shape[0], 3, self._body.heads, -1).unbind(1)
        return rotated(q, cosines, sines), rotated(k, cosines, sines), v

    def _finish(
        self,
        context: Tensor,
        x: Tensor,
        out: Tensor,
        second: tuple,
        gate_up: Tensor,
        down: Tensor,
        last: tuple | None,
    ) -> Tensor:
        body = self._body
        x = F.linear(context, out) + x
        inner = normalise(x, second, body.epsilon)
        gate, up = F.linear(inner, gate_up).chunk(2, -1)
        output = F.linear(body.activation(gate) * up, down)
        return output + x if body.pre_norm else normalise(output + inner, last, body.epsilon)

    def __call__(self, batch: Batch) -> Tensor:
        body, shape = self._body, batch.shape
        x = F.embedding(batch.ids, body.words)
        x = normalise(x if body.types is None else x + body.types, body.norm, body.epsilon)
        for block in body.blocks:
            q, k, v = self._project(
                x, block.first_norm, block.qkv, *self._turns(batch, block.theta)
            )
            context = varlen_attn(
                q,
                k,
                v,
                batch.starts,
                batch.starts,
                shape.longest,
                shape.longest,
                window_size=block.window,
            )
            x = self._finish(
                context.reshape(x.shape),
                x,
                block.out,
                block.second_norm,
                block.gate_up,
                block.down,
                block.last_norm,
            )
        x = normalise(x, body.final_norm, body.epsilon)
        return x.view(shape.texts, shape.longest, -1).mean(1)

    def _turns(self, batch: Batch, theta: float) -> tuple[Tensor, Tensor]:
        if not hasattr(batch, "turns"):
            batch.turns = {}
        if theta not in batch.turns:
            size = self._body.words.shape[1] // self._body.heads
            frequencies = theta ** (-torch.arange(0, size, 2, device="cuda").float() / size)
            angles = batch.positions.float()[:, None, None] * frequencies
            batch.turns[theta] = (angles.cos().half(), angles.sin().half())
        return batch.turns[theta]


class Graphed:
    """One CUDA graph for all batches of a shape: their ids are copied into it."""

    def __init__(self, work: Callable[[Batch], Tensor], batch: Batch) -> None:
        self._batch = batch
        self._graph, self._output = captured(lambda: work(batch))

    def __call__(self, batch: Batch) -> Tensor:
        self._batch.ids.copy_(batch.ids)
        self._graph.replay()
        return self._output


def of_transformers(model: torch.nn.Module) -> Callable[[Batch], Tensor]:
    def encode(batch: Batch) -> Tensor:
        ids = batch.ids.view(batch.shape.texts, batch.shape.longest)
        return model(input_ids=ids).last_hidden_state.mean(1)

    return encode


def products(body: Body) -> Callable[[Batch], Tensor]:
    matrices = [m for b in body.blocks for m in (b.qkv, b.out, b.gate_up, b.down)]
    inputs = {m.shape[1]: torch.randn(TOKENS, m.shape[1], device="cuda").half() for m in matrices}

    def work() -> Tensor:
        for matrix in matrices:
            result = F.linear(inputs[matrix.shape[1]], matrix)
        return result[:1].clone()

    graph, output = captured(work)

    def run(_: Batch) -> Tensor:
        graph.replay()
        return output

    return run


def vecmill(bench: Path, folder: Path, lengths: list[str], args: argparse.Namespace) -> dict:
    """Mtok/s by length, as vecmill-bench says; all that it says is kept."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [
            bench,
            "encode",
            "--model",
            folder,
            "--device",
            args.device,
            "--dtype",
            args.dtype,
        ]
        command += ["--lengths", ",".join(lengths), "--windows", "3", "--json", file.name]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        print(done.stdout[-3000:], done.stderr[-2000:], flush=True)
        return json.loads(Path(file.name).read_text() or "{}")


def measure(name: str, args: argparse.Namespace) -> dict:
    folder = args.models / name
    longest = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    lengths = [length for length in args.lengths if int(length) <= longest]
    result = {"model": name, "before": vecmill(args.bench, folder, lengths, args), "peers": {}}
    model = AutoModel.from_pretrained(folder, dtype=torch.float16, attn_implementation="sdpa")
    model = model.cuda().eval()
    body = BODIES[model.config.model_type](model)
    vocabulary = model.config.vocab_size
    packed, compiled = Packed(body, "default"), torch.compile(model, dynamic=False)
    floor = products(body)
    for length in map(int, lengths):
        texts = TOKENS // length
        shape = Shape(TOKENS, texts, length)
        batches = [Batch(shape, [length] * texts, vocabulary) for _ in range(BATCHES)]
        eager = of_transformers(model)
        makers = {
            "products alone": lambda: floor,
            "PyTorch eager, SDPA": lambda eager=eager: eager,
            "PyTorch compiled": lambda: of_transformers(compiled),
            "PyTorch best": lambda shape=shape, batches=batches: Graphed(
                packed, Batch(shape, batches[0].lengths, vocabulary)
            ),
        }
        rates = {}
        for peer, make in makers.items():
            try:
                encode = make()
                rate = sorted(windows(encode, batches))
                rates[peer] = rate[len(rate) // 2]
                if peer == "PyTorch best":
                    ours, theirs = encode(batches[0]).clone(), eager(batches[0])
                    cosine = float(F.cosine_similarity(ours.float(), theirs.float()).min())
                    rates["lowest cosine of best to eager"] = cosine
                    if cosine < LEAST_COSINE:
                        print(f"{name}, {length}: the best is wrong, cosine {cosine}", flush=True)
            except Exception as error:  # a peer that fails is reported, and the others go on
                print(
                    f"{name}, {length}, {peer}: {type(error).__name__}: {error}"[:600], flush=True
                )
        print(f"{name}, {length} tokens: {rates}", flush=True)
        result["peers"][str(length)] = rates
    result["after"] = vecmill(args.bench, folder, lengths, args)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path, help="vecmill-bench")
    parser.add_argument("models", type=Path, help="folder of the models' folders")
    parser.add_argument("--names", nargs="+", default=["modernbert-base", "nomic-base"])
    parser.add_argument("--lengths", nargs="+", default=["128", "512", "8192"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--json", type=Path, required=True, help="file for a line per model")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(1)
    for name in args.names:
        result = measure(name, args)
        with args.json.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(f"\n{name}, Mtok/s")
        for length, rates in result["peers"].items():
            figures = ", ".join(
                f"{peer} {rate / 1e6:.3f}" for peer, rate in rates.items() if rate > 1
            )
            print(f"  {length}: {figures}", flush=True)


if __name__ == "__main__":
    main()
