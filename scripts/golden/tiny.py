"""Makes testdata/models/: tiny random models in Hugging Face's layout, each with the vectors that
transformers computes for it in fp64, each input alone and unpadded."""

import argparse
import copy
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_tokenizers import TinyTokenizer, byte_level_bpe, unigram, word_piece
from transformers import PretrainedConfig, PreTrainedModel

TESTDATA = Path(__file__).resolve().parents[2] / "testdata"
TRAINED_ON = ("udhr/eng", "udhr/deu_1996")
VOCABULARY = 384
VOCABULARY_WITHOUT_TOKENIZER = 96
TEXTS = 12
LENGTHS = (5, 1, 1_000_000, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129)
DENSE_WIDTH = 24
TOLERANCE = 1e-5
AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
WITH_HEAD = {
    "bert": transformers.BertForMaskedLM,
    "camembert": transformers.CamembertForMaskedLM,
    "electra": transformers.ElectraForPreTraining,
}
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@dataclass(frozen=True)
class Spec:
    """One model; `positions` is the size of its position table, `embedding` the width of the embeddings
    where a family has that apart."""

    name: str
    kind: str
    pooling: str = "mean"
    positions: int = 64
    hidden: int = 32
    layers: int = 2
    intermediate: int = 64
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    dtype: torch.dtype = torch.float32
    tokenizer: str | None = "word_piece"
    dense: bool = False
    normalise: bool = True
    with_head: bool = False
    legacy_names: bool = False
    saved_by_sentence_transformers: bool = False
    embedding: int | None = None
    rewrite: Callable[["Spec", dict], dict] | None = None
    """Makes of config.json as transformers writes it one as the family's authors published."""
    extra: dict | None = None
    """What the family's configuration sets besides."""

    @property
    def max_tokens(self) -> int:
        """RoBERTa's line starts counting positions after the padding's, at 2."""
        return self.positions - (2 if self.kind in AFTER_PADDING else 0)

    @property
    def dimensions(self) -> int:
        return DENSE_WIDTH if self.dense else self.hidden


TRAINED = 48
"""Tokens from which on positions stretch, in the model where they do."""
NTK = 8.0


def nomic_of_its_authors(spec: Spec, config: dict) -> dict:
    """As nomic-ai/nomic-embed-text-v1.5, with a scaling factor as snowflake-arctic-embed-m-long."""
    return {
        "activation_function": "swiglu",
        "architectures": ["NomicBertModel"],
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
        "causal": False,
        "layer_norm_epsilon": config["layer_norm_eps"],
        "max_trained_positions": TRAINED,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_positions": spec.positions,
        "pad_vocab_size_multiple": 64,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": 2.0,
        "type_vocab_size": config["type_vocab_size"],
        "use_rms_norm": False,
        "vocab_size": config["vocab_size"],
    }


def gte_of_its_authors(spec: Spec, config: dict) -> dict:
    """As Alibaba-NLP/gte-base-en-v1.5."""
    same = (
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "type_vocab_size",
        "vocab_size",
    )
    return {
        **{key: config[key] for key in same},
        "architectures": ["NewModel"],
        "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "model_type": "new",
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "rope_scaling": {"factor": NTK, "type": "ntk"},
        "rope_theta": 500000,
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
    }


def modernbert_of_its_authors(spec: Spec, config: dict) -> dict:
    """As jhu-clsp/mmBERT-base: both kinds of layers have one theta."""
    kinds = config.pop("rope_parameters")
    config.pop("layer_types")
    return {
        **config,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": kinds["full_attention"]["rope_theta"],
        "local_rope_theta": kinds["sliding_attention"]["rope_theta"],
        "position_embedding_type": "sans_pos",
    }


def ntk(theta: float, factor: float, size: int) -> dict:
    """Fixed NTK in the words of transformers, which has none: theta grows, then all are divided."""
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}


def kinds(full: float, sliding: float) -> dict:
    plain = {"rope_type": "default"}
    return {
        "full_attention": {**plain, "rope_theta": full},
        "sliding_attention": {**plain, "rope_theta": sliding},
    }


SPECS = (
    Spec("bert-mean", "bert", positions=160),
    Spec("bert-cls", "bert", "cls"),
    Spec("bert-max", "bert", "max", activation="gelu_new"),
    Spec("bert-lasttoken", "bert", "lasttoken", activation="relu"),
    Spec(
        "bert-hidden48",
        "bert",
        hidden=48,
        layers=3,
        intermediate=40,
        layer_norm_eps=0.01,
        tokenizer=None,
    ),
    Spec("bert-dense", "bert", dense=True),
    Spec("bert-unnormalised", "bert", normalise=False),
    Spec("bert-f16", "bert", dtype=torch.float16),
    Spec("bert-bf16", "bert", dtype=torch.bfloat16),
    Spec("bert-prefixed", "bert", with_head=True),
    Spec("bert-legacy-names", "bert", with_head=True, legacy_names=True),
    Spec("bert-st6", "bert", "cls", dense=True, saved_by_sentence_transformers=True),
    Spec("roberta-mean", "roberta", positions=130, layer_norm_eps=1e-5, tokenizer="byte_level_bpe"),
    Spec(
        "xlm-roberta-cls",
        "xlm-roberta",
        "cls",
        positions=66,
        layer_norm_eps=1e-5,
        tokenizer="unigram",
    ),
    Spec("distilbert-mean", "distilbert"),
    Spec(
        "camembert-mean",
        "camembert",
        positions=66,
        layer_norm_eps=1e-5,
        tokenizer="unigram",
        with_head=True,
    ),
    Spec("electra-cls", "electra", "cls", embedding=32),
    Spec("electra-narrow", "electra", embedding=16, with_head=True),
    Spec("nomic-mean", "nomic_bert", positions=160, activation="silu"),
    Spec(
        "nomic-stretched",
        "nomic_bert",
        positions=160,
        activation="silu",
        tokenizer=None,
        rewrite=nomic_of_its_authors,
        extra={
            "max_position_embeddings": TRAINED,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0},
        },
    ),
    Spec("gte-cls", "gte", "cls", positions=130, tokenizer="unigram"),
    Spec(
        "gte-ntk",
        "gte",
        "cls",
        positions=130,
        tokenizer=None,
        rewrite=gte_of_its_authors,
        extra={"type_vocab_size": 0, "rope_parameters": ntk(500000.0, NTK, 16)},
    ),
    # Windows that are far shorter than the texts, so that what lies outside shows.
    Spec(
        "modernbert-mean",
        "modernbert",
        layers=3,
        positions=130,
        layer_norm_eps=1e-5,
        tokenizer="byte_level_bpe",
        extra={
            "local_attention": 16,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    Spec(
        "modernbert-biased",
        "modernbert",
        "cls",
        layers=2,
        positions=130,
        layer_norm_eps=1e-5,
        activation="silu",
        tokenizer=None,
        rewrite=modernbert_of_its_authors,
        extra={
            "local_attention": 10,
            "rope_parameters": kinds(160000.0, 160000.0),
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
        },
    ),
    Spec("ernie-mean", "ernie"),
    # Relative distances fall into one bucket from 128 on: go beyond that.
    Spec("mpnet-mean", "mpnet", positions=202, layer_norm_eps=1e-5, tokenizer=None),
)


def shape(spec: Spec, vocabulary: int) -> dict:
    heads = spec.hidden // 16
    if spec.kind == "distilbert":
        return {
            "vocab_size": vocabulary,
            "dim": spec.hidden,
            "n_layers": spec.layers,
            "n_heads": heads,
            "hidden_dim": spec.intermediate,
            "activation": spec.activation,
            "max_position_embeddings": spec.positions,
        }
    width = {"embedding_size": spec.embedding} if spec.embedding else {}
    if spec.kind == "modernbert":
        return {
            "vocab_size": vocabulary,
            "hidden_size": spec.hidden,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": heads,
            "intermediate_size": spec.intermediate,
            "hidden_activation": spec.activation,
            "max_position_embeddings": spec.positions,
            "norm_eps": spec.layer_norm_eps,
            **(spec.extra or {}),
        }
    return {
        **width,
        "vocab_size": vocabulary,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": heads,
        "intermediate_size": spec.intermediate,
        "hidden_act": spec.activation,
        "max_position_embeddings": spec.positions,
        "layer_norm_eps": spec.layer_norm_eps,
        **(spec.extra or {}),
    }


def family(kind: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel], dict]:
    """The configuration and model classes, and what published checkpoints set besides the shape."""
    specials = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    one_type = {**specials, "type_vocab_size": 1}
    return {
        "bert": (transformers.BertConfig, transformers.BertModel, {}),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel, one_type),
        "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel, one_type),
        "camembert": (transformers.CamembertConfig, transformers.CamembertModel, one_type),
        "electra": (transformers.ElectraConfig, transformers.ElectraModel, {}),
        "ernie": (transformers.ErnieConfig, transformers.ErnieModel, {"use_task_id": True}),
        "distilbert": (transformers.DistilBertConfig, transformers.DistilBertModel, {}),
        "mpnet": (transformers.MPNetConfig, transformers.MPNetModel, specials),
        "nomic_bert": (transformers.NomicBertConfig, transformers.NomicBertModel, {}),
        "gte": (transformers.GteConfig, transformers.GteModel, {}),
        "modernbert": (
            transformers.ModernBertConfig,
            transformers.ModernBertModel,
            {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        ),
    }[kind]


def build(spec: Spec, vocabulary: int) -> PreTrainedModel:
    config_class, model_class, extra = family(spec.kind)
    if spec.with_head:
        model_class = WITH_HEAD[spec.kind]
    config = config_class(**shape(spec, vocabulary), **extra)
    model = model_class._from_config(config, attn_implementation="eager").eval()
    randomise(model)
    return model.to(spec.dtype)


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Weights far enough from their usual start that a mistake in any of them shows."""
    for name, parameter in model.named_parameters():
        is_norm_weight = "norm" in name.lower() and name.endswith("weight")
        if is_norm_weight:
            parameter.normal_(1.0, 0.2)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.1)
        elif "relative_attention_bias" in name:
            parameter.normal_(0.0, 1.0)
        elif "embeddings" in name:
            parameter.normal_(0.0, 0.3)
        else:
            parameter.normal_(0.0, 0.2)


def pool(hidden: torch.Tensor, pooling: str) -> torch.Tensor:
    pools: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "mean": lambda h: h.mean(dim=0),
        "max": lambda h: h.max(dim=0).values,
        "cls": lambda h: h[0],
        "lasttoken": lambda h: h[-1],
    }
    return pools[pooling](hidden)


@torch.inference_mode()
def embed(
    spec: Spec, model: PreTrainedModel, dense: torch.nn.Linear | None, ids: list[int]
) -> list[float]:
    # Positions that stretch remember the longest input so far: a copy has seen none.
    body = copy.deepcopy(model.base_model)
    vector = pool(body(torch.tensor([ids])).last_hidden_state[0], spec.pooling)
    if dense:
        vector = torch.tanh(dense(vector))
    if spec.normalise:
        vector = torch.nn.functional.normalize(vector, dim=0)
    return [float(f"{value:.9g}") for value in vector.tolist()]


def random_ids(length: int, vocabulary: int) -> list[int]:
    return torch.randint(5, vocabulary, (length,)).tolist()


def id_cases(spec: Spec, vocabulary: int) -> Iterator[dict]:
    lengths = dict.fromkeys(min(length, spec.max_tokens) for length in LENGTHS)
    yield {"name": "one token", "inputs": [random_ids(1, vocabulary)]}
    yield {"name": "equal lengths", "inputs": [random_ids(12, vocabulary) for _ in range(4)]}
    yield {"name": "mixed lengths", "inputs": [random_ids(n, vocabulary) for n in lengths]}


def text_case(spec: Spec, tiny: TinyTokenizer, texts: list[str]) -> dict:
    tiny.tokenizer.enable_truncation(spec.max_tokens)
    inputs = [tiny.tokenizer.encode(text).ids for text in texts]
    tiny.tokenizer.no_truncation()
    return {"name": "texts", "texts": texts, "inputs": inputs}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_modules(spec: Spec, folder: Path, dense: torch.nn.Linear | None) -> None:
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Dense", "2_Dense")] if dense else []
    modules += [("Normalize", f"{len(modules)}_Normalize")] if spec.normalise else []
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)
    limits = {"max_seq_length": spec.max_tokens, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", limits)
    modes = {key: pooling == spec.pooling for pooling, key in POOLINGS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": spec.hidden, **modes})
    if dense:
        write_dense(folder / "2_Dense", dense)


def write_dense(folder: Path, dense: torch.nn.Linear) -> None:
    config = {
        "in_features": dense.in_features,
        "out_features": dense.out_features,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    write_json(folder / "config.json", config)
    weights = {f"linear.{name}": tensor for name, tensor in dense.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def use_legacy_names(folder: Path) -> None:
    """As in bert-base-uncased: gamma and beta, a stored position_ids, older configuration keys."""
    weights = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    config = json.loads((folder / "config.json").read_text())
    weights["bert.embeddings.position_ids"] = torch.arange(config["max_position_embeddings"]).unsqueeze(
        0
    )
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config["torch_dtype"] = config.pop("dtype")
    write_json(folder / "config.json", {**config, "position_embedding_type": "absolute"})


def write_tokenizer(spec: Spec, folder: Path, tiny: TinyTokenizer) -> None:
    tiny.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "tokenizer_config.json", tiny.config(spec.max_tokens))


def check(spec: Spec, folder: Path, case: dict) -> None:
    """sentence-transformers, loading the folder as its users do, must agree."""
    theirs = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    vectors = theirs.encode(case["texts"], batch_size=1, convert_to_tensor=True)
    difference = (vectors.double() - torch.tensor(case["embeddings"], dtype=torch.float64)).abs().max()
    if not difference < TOLERANCE:
        raise SystemExit(f"{spec.name}: differs from sentence-transformers by {difference}")


def resave(folder: Path) -> None:
    model = SentenceTransformer(str(folder), device="cpu")
    shutil.rmtree(folder)
    model.save(str(folder), create_model_card=False)


def make(spec: Spec, out: Path, tiny: TinyTokenizer | None, texts: list[str]) -> None:
    torch.manual_seed(zlib.crc32(spec.name.encode()))
    folder = out / spec.name
    shutil.rmtree(folder, ignore_errors=True)
    vocabulary = tiny.vocabulary if tiny else VOCABULARY_WITHOUT_TOKENIZER

    model = build(spec, vocabulary)
    dense = torch.nn.Linear(spec.hidden, DENSE_WIDTH) if spec.dense else None
    cases = list(id_cases(spec, vocabulary))
    model.save_pretrained(folder)
    write_modules(spec, folder, dense)
    if tiny:
        write_tokenizer(spec, folder, tiny)
        cases.append(text_case(spec, tiny, texts))
    if spec.legacy_names:
        use_legacy_names(folder)
    if spec.saved_by_sentence_transformers:
        resave(folder)
    if spec.rewrite:
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", spec.rewrite(spec, config))

    model, dense = model.double(), dense and dense.double()
    for case in cases:
        case["embeddings"] = [embed(spec, model, dense, ids) for ids in case["inputs"]]
    if tiny:
        check(spec, folder, cases[-1])
    expected = {"dimensions": spec.dimensions, "max_tokens": spec.max_tokens, "cases": cases}
    (folder / "expected.json").write_text(
        json.dumps(expected, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"{spec.name}: {(folder / 'model.safetensors').stat().st_size / 1e3:.0f} kB of weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=TESTDATA / "corpus" / "texts.jsonl")
    parser.add_argument("--out", type=Path, default=TESTDATA / "models")
    parser.add_argument("--only", help="make just the model of this name")
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows = [json.loads(line) for line in args.corpus.read_text("utf-8").splitlines()]
    trained_on = [row["text"] for row in rows if row["source"] in TRAINED_ON]
    tokenizers = {
        "word_piece": word_piece(trained_on, VOCABULARY),
        "byte_level_bpe": byte_level_bpe(trained_on, VOCABULARY),
        "unigram": unigram(trained_on, VOCABULARY),
    }
    texts = [row["text"] for row in rows[:: len(rows) // TEXTS]]
    for spec in SPECS:
        if args.only in (None, spec.name):
            make(spec, args.out, tokenizers.get(spec.tokenizer), texts)


if __name__ == "__main__":
    main()
