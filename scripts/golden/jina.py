"""Makes the models of testdata/models/ that are JinaBERT: transformers has it as code of its own only, so the
vectors come from what is here, in PyTorch's fp64, written from the papers and the checkpoints' names."""

import argparse
import json
import math
import shutil
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import LENGTHS, Spec, random_ids, write_json, write_modules
from torch.nn.functional import gelu, layer_norm, linear, normalize

TESTDATA = Path(__file__).resolve().parents[2] / "testdata"
VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, HEADS = 96, 48, 40, 2, 6
POSITIONS, EPSILON = 130, 1e-12

Weights = dict[str, torch.Tensor]


def shapes(for_code: bool) -> dict[str, tuple[int, ...]]:
    """All tensors; a linear layer and a norm are a name of their own, with weight and bias."""
    square, norm = (HIDDEN, HIDDEN), (HIDDEN,)
    gate_up, down = (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
    names = {
        "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    parts: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": norm}
    for index in range(LAYERS):
        at = f"encoder.layer.{index}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            parts[f"{at}.attention.{part}"] = square
        parts[f"{at}.attention.output.LayerNorm"] = norm
        if for_code:
            names[f"{at}.mlp.up_gated_layer.weight"] = gate_up
            parts[f"{at}.mlp.down_layer"] = down
            own = ("attention.self.layer_norm_q", "attention.self.layer_norm_k")
            parts |= {f"{at}.{part}": norm for part in (*own, "layer_norm_1", "layer_norm_2")}
        else:
            names[f"{at}.mlp.gated_layers.weight"] = gate_up
            parts[f"{at}.mlp.wo"] = down
            parts[f"{at}.mlp.layernorm"] = norm
    for part, shape in parts.items():
        names |= {f"{part}.weight": shape, f"{part}.bias": shape[:1]}
    return names


def random_weights(for_code: bool) -> Weights:
    weights = {}
    for name, shape in shapes(for_code).items():
        mean, deviation = 0.0, 0.13
        if name.endswith("bias"):
            deviation = 0.1
        elif len(shape) == 1:
            mean = 1.0
        elif "embeddings" in name:
            deviation = 0.3
        weights[name] = torch.normal(mean, deviation, shape)
    return weights


def slopes(heads: int) -> list[float]:
    """Of ALiBi (arXiv:2108.12409), with its authors' way out where heads are no power of two."""
    if math.log2(heads).is_integer():
        return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]
    power = 2 ** math.floor(math.log2(heads))
    return slopes(power) + slopes(2 * power)[::2][: heads - power]


def forward(weights: Weights, ids: list[int], for_code: bool) -> torch.Tensor:
    def norm(name: str, rows: torch.Tensor) -> torch.Tensor:
        return layer_norm(rows, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)

    def layer(name: str, rows: torch.Tensor) -> torch.Tensor:
        return linear(rows, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def heads(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(len(ids), HEADS, HIDDEN // HEADS).transpose(0, 1)

    places = torch.arange(len(ids), dtype=torch.float64)
    distances = (places[:, None] - places[None, :]).abs()
    bias = -torch.tensor(slopes(HEADS), dtype=torch.float64)[:, None, None] * distances
    rows = weights["embeddings.word_embeddings.weight"][ids]
    rows = norm("embeddings.LayerNorm", rows + weights["embeddings.token_type_embeddings.weight"][0])
    for index in range(LAYERS):
        at = f"encoder.layer.{index}"
        query, key, value = (
            layer(f"{at}.attention.self.{part}", rows) for part in ("query", "key", "value")
        )
        if for_code:
            query = norm(f"{at}.attention.self.layer_norm_q", query)
            key = norm(f"{at}.attention.self.layer_norm_k", key)
        scores = heads(query) @ heads(key).transpose(1, 2) / math.sqrt(HIDDEN // HEADS) + bias
        context = (scores.softmax(-1) @ heads(value)).transpose(0, 1).reshape(len(ids), HIDDEN)
        context = layer(f"{at}.attention.output.dense", context)
        attended = norm(f"{at}.attention.output.LayerNorm", context + rows)
        if for_code:
            attended = norm(f"{at}.layer_norm_1", attended + rows)
            up, gate = layer(f"{at}.mlp.up_gated_layer", attended).chunk(2, -1)
            between = layer(f"{at}.mlp.down_layer", gelu(gate) * up)
            rows = norm(f"{at}.layer_norm_2", between + attended)
        else:
            gate, up = layer(f"{at}.mlp.gated_layers", attended).chunk(2, -1)
            between = layer(f"{at}.mlp.wo", gelu(gate) * up)
            rows = norm(f"{at}.mlp.layernorm", between + attended)
    return rows


def config(for_code: bool) -> dict:
    code = "jina-bert-v2-qk-post-norm" if for_code else "jina-bert-implementation"
    return {
        "architectures": ["JinaBertModel"],
        "auto_map": {"AutoModel": f"jinaai/{code}--modeling_bert.JinaBertModel"},
        "emb_pooler": "mean",
        "feed_forward_type": "geglu",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "layer_norm_eps": EPSILON,
        "max_position_embeddings": POSITIONS,
        "model_max_length": POSITIONS,
        "model_type": "bert",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "position_embedding_type": "alibi",
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
    }


def make(name: str, out: Path, for_code: bool) -> None:
    torch.manual_seed(zlib.crc32(name.encode()))
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    spec = Spec(name, "jina", positions=POSITIONS, hidden=HIDDEN, tokenizer=None)
    weights = random_weights(for_code)
    write_json(folder / "config.json", config(for_code))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_modules(spec, folder, None)
    weights = {key: tensor.double() for key, tensor in weights.items()}
    lengths = dict.fromkeys(min(length, POSITIONS) for length in LENGTHS)
    inputs = [random_ids(length, VOCABULARY) for length in lengths]
    vectors = [normalize(forward(weights, ids, for_code).mean(0), dim=0).tolist() for ids in inputs]
    embeddings = [[float(f"{value:.9g}") for value in vector] for vector in vectors]
    case = {"name": "mixed lengths", "inputs": inputs, "embeddings": embeddings}
    expected = {"dimensions": HIDDEN, "max_tokens": POSITIONS, "cases": [case]}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TESTDATA / "models")
    args = parser.parse_args()
    torch.set_num_threads(1)
    make("jina-v2-mean", args.out, for_code=False)
    make("jina-v2-code", args.out, for_code=True)


if __name__ == "__main__":
    main()
