"""Makes testdata/static/: models that are tables without a transformer, with their vectors in fp64:
`table` as sentence-transformers saves it, checked against it, and `model2vec` in Model2Vec's layout, with
rows that tokens share and a weight for each token."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny import TESTDATA, TEXTS, TRAINED_ON, VOCABULARY, write_json
from tiny_tokenizers import word_piece

WIDTH = 16
ROWS = 50
MODEL2VEC_TOKENS = 512
TOLERANCE = 1e-6


def rounded(vector: np.ndarray) -> list[float]:
    return [float(f"{value:.9g}") for value in vector]


def mean(table: np.ndarray, ids: list[int]) -> np.ndarray:
    return table[ids].mean(axis=0) if ids else np.zeros(table.shape[1])


def write_expected(folder: Path, most: int, texts: list[str], inputs: list[list[int]], vectors) -> None:
    case = {"name": "texts", "texts": texts, "inputs": inputs, "embeddings": [rounded(v) for v in vectors]}
    expected = {"dimensions": WIDTH, "max_tokens": most, "cases": [case]}
    text = json.dumps(expected, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def make_table(folder: Path, tokenizer, texts: list[str], random: np.random.Generator) -> None:
    """Not normalised, so that the length of the mean shows."""
    weights = random.normal(0.0, 0.3, (VOCABULARY, WIDTH)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module]).save(str(folder), create_model_card=False)
    inputs = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    vectors = [mean(weights.astype(np.float64), ids) for ids in inputs]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    difference = np.abs(theirs - np.array(vectors)).max()
    if not difference < TOLERANCE:
        raise SystemExit(f"{folder.name}: differs from sentence-transformers by {difference}")
    write_expected(folder, 1 << 20, texts, inputs, vectors)


def make_model2vec(folder: Path, tokenizer, texts: list[str], random: np.random.Generator) -> None:
    """In i8, normalised, unknown tokens passed over."""
    folder.mkdir()
    rows = random.integers(-127, 128, (ROWS, WIDTH), dtype=np.int8)
    mapping = random.integers(0, ROWS, VOCABULARY, dtype=np.int64)
    scales = random.uniform(0.1, 1.0, VOCABULARY).astype(np.float32)
    save_file({"embeddings": rows, "mapping": mapping, "weights": scales}, folder / "model.safetensors")
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    table = rows[mapping].astype(np.float64) * scales[:, None]
    unknown = tokenizer.token_to_id("[UNK]")
    inputs = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    inputs = [[id for id in ids if id != unknown][:MODEL2VEC_TOKENS] for ids in inputs]
    vectors = [mean(table, ids) for ids in inputs]
    vectors = [vector / max(np.linalg.norm(vector), 1e-12) for vector in vectors]
    write_expected(folder, MODEL2VEC_TOKENS, texts, inputs, vectors)


def main() -> None:
    rows = [json.loads(line) for line in (TESTDATA / "corpus/texts.jsonl").read_text("utf-8").splitlines()]
    trained_on = [row["text"] for row in rows if row["source"] in TRAINED_ON]
    tokenizer = word_piece(trained_on, VOCABULARY).tokenizer
    tokenizer.no_truncation()
    texts = [row["text"] for row in rows[:: len(rows) // TEXTS]]
    texts += ["a quick brown fox", "漢字 and 🦊", "🦊", ""]
    random = np.random.default_rng(15)
    for name, make in (("table", make_table), ("model2vec", make_model2vec)):
        folder = TESTDATA / "static" / name
        shutil.rmtree(folder, ignore_errors=True)
        make(folder, tokenizer, texts, random)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
