"""sentence-transformers on a GPU as its users run it: f16, sorted by length, at several batch sizes."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

BATCH_SIZES = (32, 128, 512, 1024)
ROUNDS = 2
LIMIT_S = 6.0


def timed(work: Callable[[], object]) -> list[float]:
    """Seconds of each round, after one that does not count. A slow one is not repeated."""
    seconds = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if seconds[-1] > LIMIT_S:
            return seconds[-1:]
    return seconds[1:]


def batch_to_device(features: dict, device: torch.device) -> dict:
    return {name: v.to(device) if hasattr(v, "to") else v for name, v in features.items()}


def tokenised(model: SentenceTransformer, texts: list[str], batch_size: int) -> list[dict]:
    """Batches as `encode` makes them: sorted by length, the longest first."""
    ordered = sorted(texts, key=len, reverse=True)
    batches = (ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size))
    preprocess = getattr(model, "preprocess", None) or model.tokenize
    return [batch_to_device(preprocess(batch), model.device) for batch in batches]


@torch.inference_mode()
def forward_all(model: SentenceTransformer, batches: list[dict]) -> list[torch.Tensor]:
    return [model(dict(batch))["sentence_embedding"].cpu() for batch in batches]


def measure_sentence_transformers(folder: Path, texts_file: Path, device: str = "cuda") -> dict:
    texts = [json.loads(line)["text"] for line in texts_file.read_text("utf-8").splitlines()]
    model = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": torch.float16})
    rows = []
    for size in BATCH_SIZES:
        encode = partial(model.encode, texts, batch_size=size, show_progress_bar=False)
        forward = partial(forward_all, model, tokenised(model, texts, size))
        for includes_tokenising, work in ((True, encode), (False, forward)):
            seconds = timed(work)
            row = {"batch": size, "includes_tokenising": includes_tokenising, "seconds": seconds}
            rows.append({**row, "embeddings_per_second": len(texts) / min(seconds)})
            print(f"sentence-transformers: {rows[-1]}", flush=True)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in tokenised(model, texts, 512))
    return {"texts": len(texts), "tokens": tokens, "rows": rows}
