"""Makes those of testdata/models/ that classify texts or rank pairs of them: tiny random models with a
head each, and the scores that transformers computes for them in fp64, each input alone and unpadded.
What users of sentence-transformers get of the same texts must agree."""

import argparse
import copy
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import tiny
import torch
import transformers
from sentence_transformers import CrossEncoder
from tiny_tokenizers import TinyTokenizer, byte_level_bpe, unigram, word_piece
from tokenizers import processors
from transformers import PreTrainedModel

CLASSES = {
    "bert": transformers.BertForSequenceClassification,
    "roberta": transformers.RobertaForSequenceClassification,
    "xlm-roberta": transformers.XLMRobertaForSequenceClassification,
    "distilbert": transformers.DistilBertForSequenceClassification,
    "electra": transformers.ElectraForSequenceClassification,
    "mpnet": transformers.MPNetForSequenceClassification,
}
# As published models name them: they say which inputs a model has, of token types above all.
TOKENIZERS = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "mpnet": "MPNetTokenizer",
}
ACTIVATIONS = {
    "identity": torch.nn.Identity(),
    "sigmoid": torch.nn.Sigmoid(),
    "softmax": torch.nn.Softmax(dim=-1),
}
DOUBLE = "</s>"
"""What stands twice between RoBERTa's two texts."""


@dataclass(frozen=True)
class Head:
    """One model. `said` goes into `config.json`; `activation` is what follows from it."""

    spec: tiny.Spec
    labels: tuple[str, ...]
    activation: str
    said: tuple[tuple[str, object], ...] = ()
    saved_by_sentence_transformers: bool = False


def spec(name: str, kind: str, **more: object) -> tiny.Spec:
    """With an even number of tokens left beside special ones: of two long texts, releases of the
    tokenizers library differ in which one gets an odd one."""
    return tiny.Spec(name, kind, "cls", **{"positions": 65, **more})


HEADS = (
    Head(spec("bert-rerank", "bert"), ("LABEL_0",), "sigmoid"),
    Head(
        spec("bert-rerank-st6", "bert"),
        ("LABEL_0",),
        "sigmoid",
        saved_by_sentence_transformers=True,
    ),
    Head(spec("bert-classify", "bert"), ("entailment", "neutral", "contradiction"), "softmax"),
    Head(
        spec(
            "roberta-rerank",
            "roberta",
            positions=66,
            layer_norm_eps=1e-5,
            tokenizer="byte_level_bpe",
        ),
        ("LABEL_0",),
        "sigmoid",
    ),
    Head(
        spec(
            "xlm-roberta-rerank",
            "xlm-roberta",
            positions=66,
            layer_norm_eps=1e-5,
            tokenizer="unigram",
        ),
        ("LABEL_0",),
        "identity",
        (
            (
                "sentence_transformers",
                {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"},
            ),
        ),
    ),
    Head(spec("distilbert-classify", "distilbert"), ("NEGATIVE", "POSITIVE"), "softmax"),
    Head(
        spec("electra-classify", "electra", embedding=16),
        ("calm", "glad", "cross"),
        "sigmoid",
        (("problem_type", "multi_label_classification"),),
    ),
)


def with_pairs(kind: str, small: TinyTokenizer) -> TinyTokenizer:
    """The tokenizer with the post-processor of published models: types 0 and 1, or a double mark."""
    small = copy.deepcopy(small)
    ids = [(token, small.tokenizer.token_to_id(token)) for token in (small.first, small.last)]
    first, last = small.first, small.last
    if kind in tiny.AFTER_PADDING:
        pair = f"{first} $A {last} {last} $B {last}"
    else:
        pair = f"{first} $A {last} $B:1 {last}:1"
    if kind != "roberta":  # which has a post-processor of its own
        small.tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", pair=pair, special_tokens=ids
        )
    return small


def build(head: Head, vocabulary: int) -> PreTrainedModel:
    config_class, _, extra = tiny.family(head.spec.kind)
    names = dict(enumerate(head.labels))
    config = config_class(
        **tiny.shape(head.spec, vocabulary),
        **extra,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    model = CLASSES[head.spec.kind]._from_config(config, attn_implementation="eager").eval()
    tiny.randomise(model)
    return model


@torch.inference_mode()
def score(head: Head, model: PreTrainedModel, ids: list[int], second: int) -> list[list[float]]:
    """Logits and what comes out of the activation, of ids of which those from `second` on are of the
    second text."""
    types = {}
    if head.spec.kind in ("bert", "electra"):
        types["token_type_ids"] = torch.tensor([[int(place >= second) for place in range(len(ids))]])
    logits = model(torch.tensor([ids]), **types).logits[0]
    rounded = [logits, ACTIVATIONS[head.activation](logits)]
    return [[float(f"{value:.9g}") for value in row.tolist()] for row in rounded]


@torch.inference_mode()
def is_sound(model: PreTrainedModel, rows: list[dict]) -> bool:
    """Whether scores are about as large as what they are summed of: where terms cancel, or all add up,
    what is lost on the way to them counts for more in a score than in a vector, or for less."""
    out = getattr(model.classifier, "out_proj", model.classifier)
    terms = []
    hook = out.register_forward_pre_hook(lambda _, inputs: terms.append(inputs[0][0]))
    logits = torch.cat([model(torch.tensor([row["ids"]])).logits for row in rows])
    hook.remove()
    squares = torch.stack(terms).square() @ out.weight.square().T
    return bool(1.5 < logits.square().mean() / squares.mean() < 3)


def pairs(texts: list[str]) -> list[list[str]]:
    """Short and long texts side by side, so that the first, the second or both are cut."""
    short = ["everyone", "rights and duties", "a"]
    mixed = [[a, b] for a, b in zip(texts, texts[1:], strict=False)]
    return [
        *([a, b] for a in short for b in short),
        *([short[i % 3], text] for i, text in enumerate(texts)),
        *([text, short[i % 3]] for i, text in enumerate(texts)),
        *mixed,
        ["", "everyone"],
        ["everyone", ""],
        ["everyone  has ", " the right"],
    ]


def tokenized(head: Head, small: TinyTokenizer, inputs: list) -> list[dict]:
    """Ids, and the place from which on they are of type 1."""
    small.tokenizer.enable_truncation(head.spec.max_tokens, strategy="longest_first")
    rows = []
    for text in inputs:
        pair = isinstance(text, list)
        encoding = small.tokenizer.encode(*text) if pair else small.tokenizer.encode(text)
        types = encoding.type_ids
        second = types.index(1) if 1 in types else len(types)
        rows.append({"ids": encoding.ids, "second": second})
    small.tokenizer.no_truncation()
    return rows


def check(head: Head, folder: Path, case: dict) -> None:
    """sentence-transformers, loading the folder as its users do, must agree."""
    theirs = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    activation = None
    if head.activation != "sigmoid" or len(head.labels) > 1:
        activation = ACTIVATIONS[head.activation]
    scores = theirs.predict(
        case["texts"], batch_size=1, activation_fn=activation, convert_to_tensor=True
    )
    expected = torch.tensor(case["scores"], dtype=torch.float64).squeeze(-1)
    difference = (scores.double() - expected).abs().max()
    if not difference < tiny.TOLERANCE:
        raise SystemExit(f"{head.spec.name}: differs from sentence-transformers by {difference}")


def resave(folder: Path) -> None:
    model = CrossEncoder(str(folder), device="cpu")
    shutil.rmtree(folder)
    model.save(str(folder), create_model_card=False)


def make(head: Head, out: Path, small: TinyTokenizer, texts: list[str]) -> None:
    folder = out / head.spec.name
    shutil.rmtree(folder, ignore_errors=True)
    small = with_pairs(head.spec.kind, small)

    cases = [{"name": "texts", "texts": texts}, {"name": "pairs", "texts": pairs(texts)}]
    rows = [tokenized(head, small, case["texts"]) for case in cases]
    torch.manual_seed(zlib.crc32(head.spec.name.encode()))
    while not is_sound(model := build(head, small.vocabulary), rows[1]):
        pass
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    tiny.write_json(folder / "config.json", {**settings, **dict(head.said)})
    small.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = small.config(head.spec.max_tokens)
    settings["tokenizer_class"] = TOKENIZERS[head.spec.kind]
    tiny.write_json(folder / "tokenizer_config.json", settings)
    if head.saved_by_sentence_transformers:
        resave(folder)

    model = model.double()
    for case, inputs in zip(cases, rows, strict=True):
        scores = [score(head, model, row["ids"], row["second"]) for row in inputs]
        case["inputs"] = [row["ids"] for row in inputs]
        case["second"] = [row["second"] for row in inputs]
        case["logits"] = [logits for logits, _ in scores]
        case["scores"] = [activated for _, activated in scores]
    check(head, folder, cases[1])
    sizes = {"dimensions": len(head.labels), "max_tokens": head.spec.max_tokens}
    expected = {**sizes, "labels": head.labels, "activation": head.activation, "cases": cases}
    (folder / "expected.json").write_text(
        json.dumps(expected, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"{head.spec.name}: {(folder / 'model.safetensors').stat().st_size / 1e3:.0f} kB of weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=tiny.TESTDATA / "corpus" / "texts.jsonl")
    parser.add_argument("--out", type=Path, default=tiny.TESTDATA / "models")
    parser.add_argument("--only", help="make just the model of this name")
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows = [json.loads(line) for line in args.corpus.read_text("utf-8").splitlines()]
    trained_on = [row["text"] for row in rows if row["source"] in tiny.TRAINED_ON]
    tokenizers = {
        "word_piece": word_piece(trained_on, tiny.VOCABULARY),
        "byte_level_bpe": byte_level_bpe(trained_on, tiny.VOCABULARY),
        "unigram": unigram(trained_on, tiny.VOCABULARY),
    }
    texts = [row["text"] for row in rows[:: len(rows) // tiny.TEXTS]]
    for head in HEADS:
        if args.only in (None, head.spec.name):
            make(head, args.out, tokenizers[head.spec.tokenizer], texts)


if __name__ == "__main__":
    main()
