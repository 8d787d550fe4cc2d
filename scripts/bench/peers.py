"""The embedders that vecmill is measured against, as their own users run them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.transformers import optimizer
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel

BATCH = 32
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"


def load_tokenizer(model: Path, max_tokens: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


class SentenceTransformers:
    name = "sentence-transformers"

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = SentenceTransformer(str(model), device="cpu")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)


class Output(torch.nn.Module):
    """A model of which one output is wanted, by its name."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(**dict(zip(INPUTS, inputs))), self.name)


def export(bert: torch.nn.Module, output: str, target: Path) -> None:
    """Of a model with eager attention: only in its graph does ONNX Runtime recognise attention."""
    ids = torch.ones(2, 8, dtype=torch.long)
    torch.onnx.export(
        Output(bert.eval(), output),
        (ids, ids, torch.zeros_like(ids)),
        str(target),
        input_names=list(INPUTS),
        output_names=[output],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in INPUTS},
        opset_version=17,
        dynamo=False,
    )


def optimise(source: Path, target: Path, heads: int, hidden: int) -> None:
    graph = optimizer.optimize_model(
        str(source), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=0
    )
    graph.save_model_to_file(str(target))


def session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


class OnnxRuntime:
    """Fused by ONNX Runtime's own transformer optimiser, then all of the session's optimisations."""

    name = "ONNX Runtime"

    def __init__(self, model: Path, threads: int, max_tokens: int, cache: Path) -> None:
        self._tokenizer = load_tokenizer(model, max_tokens)
        self._tokenizer.enable_padding()
        self._session = session(self._fused_graph(model, cache), threads)

    @staticmethod
    def _fused_graph(model: Path, cache: Path) -> Path:
        cache.mkdir(parents=True, exist_ok=True)
        plain, fused = cache / "plain.onnx", cache / "fused.onnx"
        if not fused.exists():
            bert = AutoModel.from_pretrained(model, attn_implementation="eager")
            export(bert, OUTPUT, plain)
            config = AutoConfig.from_pretrained(model)
            optimise(plain, fused, config.num_attention_heads, config.hidden_size)
        return fused

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        batches = (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))
        return np.concatenate([self._embed_batch(batch) for batch in batches])

    def _embed_batch(self, texts: Sequence[str]) -> np.ndarray:
        encodings = self._tokenizer.encode_batch(list(texts))
        feed = {
            "input_ids": np.array([e.ids for e in encodings]),
            "attention_mask": np.array([e.attention_mask for e in encodings]),
            "token_type_ids": np.array([e.type_ids for e in encodings]),
        }
        hidden = self._session.run([OUTPUT], feed)[0]
        mask = feed["attention_mask"][:, :, None].astype(np.float32)
        mean = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


class OnnxRuntimeSorted(OnnxRuntime):
    """With the padding that sorting by length saves, for callers who think of it."""

    name = "ONNX Runtime, sorted by length"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = super().embed([texts[i] for i in order])
        return vectors[np.argsort(order)]
