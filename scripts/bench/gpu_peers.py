"""PyTorch beside vecmill on a GPU, one model: throughput by equal and mixed lengths, the latency of
one short text, the time of the matrix products alone, and sentence-transformers as its users run it.

    python scripts/bench/gpu_peers.py target/gpu-models/minilm --texts mixed.jsonl --json peers.json

All in f16. Ids are on the device before the clock starts, which is in the peers' favour: vecmill's
come from the host. `gpu_timing.py` says how time is taken.
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import report
import torch
import torch.nn.functional as F
from gpu_sentence_transformers import measure_sentence_transformers
from gpu_timing import latency, quick, rate_figures, windows
from gpu_torch import DENSE, Batch, Eager, Graphed, Packed, Shape, captured
from torch import Tensor
from transformers import BertModel

TOKENS = 32_768
SMALL_TOKENS = 4096
LENGTHS = ("16", "128", "512", "mixed")
BATCHES = 4
ROUNDS = 2
SHORT_TOKENS = 12
# Mixed lengths: as vecmill-bench has them.
MEDIAN, SPREAD, SHORTEST, LONGEST = 40, 0.92, 3, 512
MODES = ("default", "max-autotune-no-cudagraphs")
LEAST_COSINE = 0.999
COMPILE_LIMIT_S = 60
BEST = "PyTorch best"


def say(line: str) -> None:
    print(line, flush=True)


def load(folder: Path) -> BertModel:
    options = {"dtype": torch.float16, "attn_implementation": "sdpa", "add_pooling_layer": False}
    return BertModel.from_pretrained(folder, **options).cuda().eval()


def equal_batches(tokens: int, vocabulary: int) -> list[Batch]:
    texts = TOKENS // tokens
    shape = Shape(TOKENS, texts, tokens)
    return [Batch(shape, [tokens] * texts, vocabulary) for _ in range(BATCHES)]


def mixed_batches(vocabulary: int) -> list[Batch]:
    generator = np.random.default_rng(1)
    draws = np.exp(
        np.log(MEDIAN) + SPREAD * generator.standard_normal((BATCHES, TOKENS // SHORTEST))
    )
    lengths = draws.round().clip(SHORTEST, LONGEST).astype(int)
    fitting = [row[: np.searchsorted(row.cumsum(), TOKENS, "right")].tolist() for row in lengths]
    shape = Shape(TOKENS, max(map(len, fitting)), LONGEST)
    return [Batch(shape, row, vocabulary) for row in fitting]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def packed_variants(bert: BertModel, modes: Sequence[str], pooling: str) -> dict[str, Packed]:
    """Compiled once per mode: all batches have as many tokens."""
    variants = {}
    for mode in modes:
        began = time.perf_counter()
        try:
            packed = Packed(bert, mode, pooling)
            with time_limit(COMPILE_LIMIT_S):
                Graphed(packed, equal_batches(128, bert.config.vocab_size)[0])
        except Exception as error:  # a peer that fails is reported, and the others go on
            say(f"torch.compile, {mode}: {type(error).__name__}: {error}")
            continue
        variants[mode] = packed
        say(f"torch.compile, {mode}: {time.perf_counter() - began:.0f} s")
    return variants


def fastest(variants: dict[str, Packed], batches: list[Batch]) -> tuple[str, Graphed, dict]:
    """The best of the compiled variants with each attention, by a short look."""
    attentions = ["packed", *DENSE] if batches[0].shape.is_equal else ["packed"]
    rates, candidates = {}, {}
    for mode, packed in variants.items():
        for attention in attentions:
            name = f"{mode}, {attention} attention"
            try:
                scratch = Batch(batches[0].shape, batches[0].lengths, 1)
                candidates[name] = Graphed(packed, scratch, attention)
                rates[name] = quick(candidates[name], batches)
            except Exception as error:  # some attentions refuse some head sizes
                say(f"{name}: {type(error).__name__}: {error}")
    best = max(rates, key=rates.get)
    return best, candidates[best], rates


def lowest_cosine(ours: Tensor, theirs: Tensor) -> float:
    return float(F.cosine_similarity(ours.float(), theirs.float()).min())


def throughput(
    bert: BertModel, variants: dict[str, Packed], all_lengths: Sequence[str], pooling: str
) -> list[dict]:
    eager, rows = Eager(bert, pooling), []
    for lengths in all_lengths:
        vocabulary = bert.config.vocab_size
        batches = (
            mixed_batches(vocabulary)
            if lengths == "mixed"
            else equal_batches(int(lengths), vocabulary)
        )
        best, graphed, looked_at = fastest(variants, batches)
        peers = {BEST: graphed}
        if lengths != "mixed":
            peers[Eager.name] = eager
            cosine = lowest_cosine(graphed(batches[0]).clone(), eager(batches[0]))
            if not cosine >= LEAST_COSINE:
                raise SystemExit(f"{best}: cosine {cosine} to eager PyTorch")
        rates: dict[str, list[float]] = {name: [] for name in peers}
        for name in [*peers, *reversed(peers)] * (ROUNDS // 2):
            rates[name] += windows(peers[name], batches)
        texts = sum(len(batch.lengths) for batch in batches) / BATCHES
        for name in peers:
            how = {"how": best, "looked_at": looked_at} if name == BEST else {}
            row = {"peer": name, "lengths": lengths, "texts_per_batch": texts, **how}
            rows.append({**row, **rate_figures(rates[name])})
            say(f"{lengths} tokens, {name}: {rows[-1]['tokens_per_second']:,.0f} tokens/s")
        say(f"the best is {best}")
    return rows


def one_text(bert: BertModel, packed: Packed) -> list[dict]:
    """From ids in pinned host memory to a vector in it."""
    shape = Shape(SHORT_TOKENS, 1, SHORT_TOKENS)
    batch = Batch(shape, [SHORT_TOKENS], bert.config.vocab_size)
    ids = batch.ids.cpu().pin_memory()
    vector = torch.empty(1, bert.config.hidden_size, dtype=torch.float16, pin_memory=True)

    def host_to_host(encode: Callable[[], Tensor]) -> Callable[[], None]:
        def once() -> None:
            batch.ids.copy_(ids, non_blocking=True)
            vector.copy_(encode(), non_blocking=True)
            torch.cuda.current_stream().synchronize()

        return once

    eager = Eager(bert)
    eager_graph, eager_output = captured(lambda: eager(batch))
    graphs = [Graphed(packed, batch, attention) for attention in ("packed", "flash")]
    best = min(graphs, key=lambda graphed: latency(host_to_host(graphed.replay))["p50_ms"])
    peers = {
        "PyTorch eager": lambda: eager(batch),
        "PyTorch eager in a CUDA graph": lambda: (eager_graph.replay(), eager_output)[1],
        BEST: best.replay,
    }
    rows = []
    for name, encode in peers.items():
        rows.append({"peer": name, "tokens": SHORT_TOKENS, **latency(host_to_host(encode))})
        say(f"one text, {name}: p50 {rows[-1]['p50_ms']:.3f} ms")
    return rows


def random(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float16, device="cuda") * 0.02


def products(bert: BertModel, tokens: int) -> dict:
    """The time of all layers' matrix products alone, each layer with weights of its own."""
    hidden, inner = bert.config.hidden_size, bert.config.intermediate_size
    layers = bert.config.num_hidden_layers
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
    weights = [[(random(b, a), random(b)) for a, b in shapes] for _ in range(layers)]
    inputs = [random(tokens, width) for width, _ in shapes]

    def all_layers() -> Tensor:
        for layer in weights:
            for x, (weight, bias) in zip(inputs, layer):
                result = F.linear(x, weight, bias)
        return result[:1].clone()

    graph, output = captured(all_layers)
    batch = Batch(Shape(tokens, 1, tokens), [tokens], 1)
    rates = windows(lambda _: (graph.replay(), output)[1], [batch])
    flop_per_token = 2 * layers * sum(a * b for a, b in shapes)
    figures = {"tokens": tokens, **rate_figures(rates)}
    rate = figures["tokens_per_second"]
    figures["tflop_per_second"] = rate * flop_per_token / 1e12
    say(f"products alone, {tokens} tokens: {rate:,.0f} tokens/s")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--texts", type=Path, help="JSON lines for sentence-transformers")
    parser.add_argument("--modes", nargs="+", default=MODES, help="of torch.compile")
    parser.add_argument("--lengths", nargs="+", default=LENGTHS, help="tokens per text, or mixed")
    parser.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="for throughput")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    torch.set_grad_enabled(False)
    torch.manual_seed(1)
    bert = load(args.model)
    variants = packed_variants(bert, args.modes, args.pooling)
    parts = {
        "products": lambda: [products(bert, tokens) for tokens in (TOKENS, SMALL_TOKENS)],
        "throughput": lambda: throughput(bert, variants, args.lengths, args.pooling),
        "latency": lambda: one_text(bert, Packed(bert, "default")),
    }
    if args.texts:
        parts["sentence_transformers"] = partial(
            measure_sentence_transformers, args.model, args.texts
        )
    result = report.provenance("torch", "transformers", "sentence-transformers")
    result["device"] = torch.cuda.get_device_name()
    result["figures"] = {"what": "peers", "model": args.model.name, "pooling": args.pooling}
    for name, measure in parts.items():
        result["figures"][name] = measure()
        # Written each time: whoever stops this keeps what is there.
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
