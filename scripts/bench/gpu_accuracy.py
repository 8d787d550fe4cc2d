"""Vectors of a vecmill server against transformers in fp32, and what it makes of odd texts.

    python scripts/bench/gpu_accuracy.py VECMILL folder/of/all-MiniLM-L6-v2 --flags "--device cuda:0" \\
        --least 0.9995 --out results.jsonl

Real texts of testdata/corpus; two references: the vectors in testdata/golden, of the model's own
weights in fp32; and transformers in fp32 with the weights as they are in the folder, which may have
been rounded to f16.
"""

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import vecmill
from tokenizers import Tokenizer
from transformers import AutoModel

TESTDATA = Path(__file__).resolve().parents[2] / "testdata"
BATCH = 64
COMPANIONS = 64
ODD = {
    "a space": " ",
    "a full stop": ".",
    "a zero-width space": "\u200b",
    "a null character": "\0",
    "a lone accent": "\u0301",
    "a hundred thousand letters": "a" * 100_000,
    "one word ten thousand times": "word " * 10_000,
    "one emoji a thousand times": "😀" * 1000,
    "only unknown characters": "\ue000" * 600,
    "Chinese, long": "世界人权宣言" * 500,
    "right to left": "الإعلان العالمي " * 200,
}


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(ours: np.ndarray, theirs: np.ndarray) -> dict:
    values = (unit(ours) * unit(theirs)).sum(axis=1)
    return {"lowest": float(values.min()), "mean": float(values.mean())}


@torch.inference_mode()
def reference(folder: Path, texts: list[str]) -> Iterator[np.ndarray]:
    """Mean vectors, each text alone and unpadded."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids], device=device)
        yield (
            model(ids, attention_mask=torch.ones_like(ids))
            .last_hidden_state.mean(1)[0]
            .cpu()
            .numpy()
        )


def company(client: vecmill.Client, texts: list[str], together: np.ndarray) -> dict:
    """Texts alone against the same texts among others."""
    alone = np.concatenate([client.embed([text]) for text in texts[:COMPANIONS]])
    same = (alone == together[: len(alone)]).all(axis=1)
    return {**cosines(alone, together[: len(alone)]), "bit_for_bit": float(same.mean())}


def odd(client: vecmill.Client) -> dict[str, str]:
    """What becomes of odd texts, alone and all together: finite vectors of length one, or a refusal
    that says it is the caller's fault."""
    outcomes = {}
    for name, text in [*ODD.items(), ("all together", list(ODD.values()))]:
        request = {"input": text, "model": "any", "encoding_format": "float"}
        status, reply = client.request(request)
        if status == 200:
            vectors = np.array([row["embedding"] for row in reply["data"]], dtype=np.float64)
            lengths = np.linalg.norm(vectors, axis=1)
            good = bool(np.isfinite(vectors).all() and np.allclose(lengths, 1, atol=1e-3))
            outcomes[name] = "good" if good else f"BAD: lengths {lengths}"
        else:
            refused = 400 <= status < 500
            outcomes[name] = f"refused, {status}" if refused else f"BAD: status {status}: {reply}"
    return outcomes


def measure(args: argparse.Namespace, texts: list[str]) -> dict:
    flags = ["--model-id", str(args.model.resolve()), *shlex.split(args.flags)]
    with vecmill.server(args.vecmill, *flags) as (_, port):
        client = vecmill.Client(port, batch=BATCH)
        ours = client.embed(texts)
        again = client.embed(texts)
        figures = {
            "alone_and_in_company": company(client, texts, ours),
            "repeated": {
                **cosines(ours, again),
                "bit_for_bit": float((ours == again).all(axis=1).mean()),
            },
            "odd": odd(client),
        }
    golden = np.load(TESTDATA / "golden" / "all-MiniLM-L6-v2.f32.npy")
    figures["golden"] = cosines(ours, golden)
    figures["transformers_with_the_same_weights"] = cosines(
        ours, np.stack(list(reference(args.model, texts)))
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vecmill", type=Path, help="the vecmill binary")
    parser.add_argument("model", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--flags", default="", help="of vecmill serve, in one string")
    parser.add_argument("--least", type=float, default=0.9995, help="the lowest cosine that passes")
    parser.add_argument("--out", type=Path, help="file to append a line to")
    args = parser.parse_args()
    corpus = (TESTDATA / "corpus" / "texts.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in corpus]
    figures = {
        "what": "accuracy",
        "server_flags": args.flags,
        "texts": len(texts),
        **measure(args, texts),
    }
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    if args.out:
        with args.out.open("a") as out:
            out.write(json.dumps({"figures": figures}) + "\n")
    bad = [name for name, outcome in figures["odd"].items() if outcome.startswith("BAD")]
    lowest = figures["transformers_with_the_same_weights"]["lowest"]
    if bad or not lowest >= args.least:
        raise SystemExit(f"lowest cosine {lowest}, asked {args.least}; bad answers: {bad}")


if __name__ == "__main__":
    main()
