"""Makes the models of testdata/models/ that pool in several ways, out of `bert-cls`: its weights and
inputs, other pooling, and the vectors that NumPy computes in fp64, each input alone.

The encoder below must first find the vectors that transformers found for `bert-cls` and, with its own
weights, `bert-mean`. The poolings are written from their definitions: sentence-transformers says in
which order results stand beside each other."""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np

MODELS = Path(__file__).resolve().parents[2] / "testdata" / "models"
DENSE_WIDTH = 24
TOLERANCE = 1e-8
erf = np.vectorize(math.erf)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        assert info["dtype"] == "F32", name
        start, end = (8 + length + offset for offset in info["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], "<f4").reshape(info["shape"]).astype(np.float64)
    return tensors


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header: dict = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in sorted(tensors.items()):
        stored = tensor.astype("<f4").tobytes()
        offsets = [len(body), len(body) + len(stored)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        body += stored
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


class Bert:
    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = read_tensors(folder / "model.safetensors")

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.config["layer_norm_eps"])
        return centred / deviation * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def attention(self, x: np.ndarray, name: str) -> np.ndarray:
        heads = self.config["num_attention_heads"]
        size = x.shape[1] // heads
        query, key, value = (
            self.linear(x, f"{name}.self.{part}").reshape(len(x), heads, size).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(size)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        together = (weights @ value).transpose(1, 0, 2).reshape(len(x), -1)
        return self.linear(together, f"{name}.output.dense")

    def tokens(self, ids: list[int]) -> np.ndarray:
        table = {part: self.tensors[f"embeddings.{part}_embeddings.weight"] for part in
                 ("word", "position", "token_type")}
        x = table["word"][ids] + table["position"][: len(ids)] + table["token_type"][0]
        x = self.norm(x, "embeddings.LayerNorm")
        for index in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            x = self.norm(x + self.attention(x, f"{layer}.attention"), f"{layer}.attention.output.LayerNorm")
            up = self.linear(x, f"{layer}.intermediate.dense")
            up = up * (1 + erf(up / math.sqrt(2))) / 2
            x = self.norm(x + self.linear(up, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x


def pool(rows: np.ndarray, mode: str) -> np.ndarray:
    weights = np.arange(1, len(rows) + 1)[:, None]
    return {
        "cls": lambda: rows[0],
        "lasttoken": lambda: rows[-1],
        "max": lambda: rows.max(axis=0),
        "mean": lambda: rows.mean(axis=0),
        "mean_sqrt_len_tokens": lambda: rows.sum(axis=0) / math.sqrt(len(rows)),
        "weightedmean": lambda: (rows * weights).sum(axis=0) / weights.sum(),
    }[mode]()


def normalised(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def check() -> None:
    """The encoder must find what transformers found."""
    for name, mode in (("bert-cls", "cls"), ("bert-mean", "mean")):
        bert = Bert(MODELS / name)
        for case in json.loads((MODELS / name / "expected.json").read_text("utf-8"))["cases"]:
            for ids, expected in zip(case["inputs"], case["embeddings"], strict=True):
                vector = normalised(pool(bert.tokens(ids), mode))
                difference = np.abs(vector - expected).max()
                if not difference < TOLERANCE:
                    raise SystemExit(f"{name}: differs from transformers by {difference}")


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def make(name: str, modes: list[str], pooling: dict, dense: bool, out: Path) -> None:
    folder, source = out / name, MODELS / "bert-cls"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    bert = Bert(folder)
    hidden = bert.config["hidden_size"]
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **pooling})
    chosen = ["Transformer", "Pooling", "Dense", "Normalize"] if dense else ["Transformer", "Pooling"]
    write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}",
         "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(chosen)
    ])
    random = np.random.default_rng(len(modes))
    weight = (random.normal(0, 0.2, (DENSE_WIDTH, hidden * len(modes)))).astype("<f4")
    bias = random.normal(0, 0.1, DENSE_WIDTH).astype("<f4")
    if dense:
        write_tensors(folder / "2_Dense" / "model.safetensors",
                      {"linear.weight": weight, "linear.bias": bias})
        write_json(folder / "2_Dense" / "config.json", {
            "in_features": hidden * len(modes), "out_features": DENSE_WIDTH, "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        })

    def embed(ids: list[int]) -> list[float]:
        rows = bert.tokens(ids)
        vector = np.concatenate([pool(rows, mode) for mode in modes])
        if dense:
            vector = normalised(np.tanh(weight.astype(np.float64) @ vector + bias.astype(np.float64)))
        return [float(f"{value:.9g}") for value in vector]

    expected = json.loads((source / "expected.json").read_text("utf-8"))
    expected["dimensions"] = DENSE_WIDTH if dense else hidden * len(modes)
    for case in expected["cases"]:
        case["embeddings"] = [embed(ids) for ids in case["inputs"]]
    text = json.dumps(expected, ensure_ascii=False) + "\n"
    (folder / "expected.json").write_text(text, encoding="utf-8")
    print(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODELS)
    out = parser.parse_args().out
    check()
    # Where each mode has a key, results stand in the order cls, max, mean, ... whatever the keys' is.
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True,
             "pooling_mode_cls_token": False, "pooling_mode_mean_sqrt_len_tokens": False}
    make("bert-mean-and-max", ["max", "mean"], flags, True, out)
    modes = ["weightedmean", "lasttoken", "mean_sqrt_len_tokens"]
    make("bert-poolings", modes, {"pooling_mode": modes}, False, out)


if __name__ == "__main__":
    main()
