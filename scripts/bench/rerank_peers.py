"""Queries and documents to scores on the CPU: vecmill, sentence-transformers' CrossEncoder and ONNX
Runtime, on the same cores, in turns within one run. The model has the shape of ms-marco-MiniLM-L6:
all-MiniLM-L6-v2's body under a random head, which costs what a trained one does. Tokenising counts for
everyone; vecmill's figures also include HTTP and JSON, its peers run in this process."""

import argparse
import json
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Protocol

import numpy as np
import report
import torch
import vecmill
from cpu_peers import MIXED, MODEL, PACKAGES, ROOT, VECMILL, cut_to, pin, seconds_of, spread, turns
from peers import BATCH, export, load_tokenizer, optimise, session
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_TOKENS = 512
QUERY_TOKENS = 14
DOCUMENT_TOKENS = 116  # with the query and three special tokens: 129, as a batch of ms marco has them
Ranking = tuple[str, list[str]]


class Scorer(Protocol):
    name: str

    def score(self, ranking: Ranking) -> np.ndarray: ...


class Vecmill:
    name = VECMILL

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection(vecmill.HOST, port)

    def score(self, ranking: Ranking) -> np.ndarray:
        query, texts = ranking
        body = json.dumps({"query": query, "texts": texts, "truncate": True})
        self._connection.request("POST", "/rerank", body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        reply = json.loads(response.read())
        if response.status != 200:
            raise SystemExit(f"/rerank: {response.status} {reply}")
        scores = np.zeros(len(texts))
        for ranked in reply:
            scores[ranked["index"]] = ranked["score"]
        return scores


class SentenceTransformers:
    name = "sentence-transformers, CrossEncoder"

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = CrossEncoder(str(model), device="cpu", max_length=MAX_TOKENS)

    def score(self, ranking: Ranking) -> np.ndarray:
        query, texts = ranking
        pairs = [(query, text) for text in texts]
        return self._model.predict(pairs, batch_size=BATCH, show_progress_bar=False)


class OnnxRuntime:
    """Fused by ONNX Runtime's own transformer optimiser; pairs in the order of their lengths, so that
    little is padded."""

    name = "ONNX Runtime, sorted by length"

    def __init__(self, model: Path, threads: int, cache: Path) -> None:
        self._tokenizer = load_tokenizer(model, MAX_TOKENS)
        self._tokenizer.enable_padding()
        self._session = session(self._fused_graph(model, cache), threads)

    @staticmethod
    def _fused_graph(model: Path, cache: Path) -> Path:
        plain, fused = cache / "rerank-plain.onnx", cache / "rerank-fused.onnx"
        bert = AutoModelForSequenceClassification.from_pretrained(model, attn_implementation="eager")
        export(bert, "logits", plain)
        optimise(plain, fused, bert.config.num_attention_heads, bert.config.hidden_size)
        return fused

    def score(self, ranking: Ranking) -> np.ndarray:
        query, texts = ranking
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores = np.zeros(len(texts))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            encodings = self._tokenizer.encode_batch([(query, texts[i]) for i in chosen])
            feed = {
                "input_ids": np.array([e.ids for e in encodings]),
                "attention_mask": np.array([e.attention_mask for e in encodings]),
                "token_type_ids": np.array([e.type_ids for e in encodings]),
            }
            logits = self._session.run(["logits"], feed)[0][:, 0].astype(np.float64)
            scores[chosen] = 1 / (1 + np.exp(-logits))
        return scores


def make_model(cache: Path) -> Path:
    """all-MiniLM-L6-v2 under a random head with one label, as cross-encoders have it."""
    folder = cache / "rerank-minilm-l6"
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1)
        torch.nn.init.normal_(model.classifier.weight, std=0.5)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(MODEL, model_max_length=MAX_TOKENS).save_pretrained(folder)
    return folder


def rankings(queries: int, documents: int) -> dict[str, list[Ranking]]:
    tokenizer = load_tokenizer(MODEL, MAX_TOKENS)
    mixed = [json.loads(line)["text"] for line in MIXED.read_text("utf-8").splitlines()]
    asked = cut_to(QUERY_TOKENS, queries, mixed, tokenizer)
    equal = cut_to(DOCUMENT_TOKENS, documents, mixed, tokenizer)
    return {
        f"{documents} documents of {DOCUMENT_TOKENS - 2} tokens": [(query, equal) for query in asked],
        f"{documents} documents of mixed lengths": [(query, mixed[:documents]) for query in asked],
    }


def measure(name: str, work: list[Ranking], scorers: list[Scorer], rounds: int) -> dict:
    samples: dict[str, list[float]] = {s.name: [] for s in scorers}
    for scorer in turns(scorers, rounds):
        samples[scorer.name].append(seconds_of(lambda s=scorer: [s.score(ranking) for ranking in work]))
        print(f"{name}: {scorer.name} {samples[scorer.name][-1]:.2f} s", flush=True)
    pairs = sum(len(texts) for _, texts in work)
    results = {}
    for scorer, mine in samples.items():
        results[scorer] = {
            "seconds": [round(sample, 4) for sample in mine],
            "pairs_per_s": spread([pairs / s for s in mine], 1),
        }
        if scorer != VECMILL and VECMILL in samples:
            ratios = [b / a for a, b in zip(samples[VECMILL], mine)]
            results[scorer]["vecmill_speed_up"] = spread(ratios, 2)
    return {"queries": len(work), "pairs": pairs, "results": results}


def largest_differences(work: list[Ranking], scorers: list[Scorer]) -> dict[str, float]:
    first, *others = [(s.name, np.asarray(s.score(work[0]), np.float64)) for s in scorers]
    return {f"{first[0]} and {name}": float(np.abs(first[1] - scores).max()) for name, scores in others}


def summary(result: dict) -> str:
    rows = []
    for work, measured in result["work"].items():
        for name, r in measured["results"].items():
            rate, ratio = r["pairs_per_s"], r.get("vecmill_speed_up")
            speed_up = f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else ""
            pairs = f"{rate['median']:.1f} ({rate['min']:.1f}–{rate['max']:.1f})"
            rows.append([work, name, pairs, speed_up])
    table = report.markdown(["a query and", "scorer", "pairs/s (min–max)", "vecmill is × as fast"], rows)
    facts = [
        f"`{result['command']}`, {result['date']}, {result['cpu']}, {result['threads']} threads, "
        f"{result['vecmill']}. {__doc__}",
    ]
    differences = [
        f"Largest difference of scores, {pair}: {value:.1e}."
        for pair, value in result["largest_difference"].items()
    ]
    return "\n".join([*facts, "", table, *differences]) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vecmill", type=Path, required=True, help="the binary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="each is two turns per scorer")
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "vecmill-bench")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "rerank-peers.json")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    pin(args.threads)
    args.cache.mkdir(parents=True, exist_ok=True)
    model = make_model(args.cache)
    scorers: list[Scorer] = [
        SentenceTransformers(model, args.threads),
        OnnxRuntime(model, args.threads, args.cache),
    ]
    work = rankings(args.queries, args.documents)
    with ExitStack() as stack:
        flags = ["--model-id", str(model), "--device", "cpu"]
        _, port = stack.enter_context(vecmill.server(args.vecmill, *flags))
        scorers.insert(0, Vecmill(port))
        first = next(iter(work.values()))
        result = {
            **report.provenance(*PACKAGES),
            "threads": args.threads,
            "vecmill": vecmill.version(args.vecmill),
            "largest_difference": largest_differences(first, scorers),
            "work": {name: measure(name, rank, scorers, args.rounds) for name, rank in work.items()},
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    args.out.with_suffix(".md").write_text(summary(result))
    print(summary(result))


if __name__ == "__main__":
    main()
