"""Makes models with the real configurations of all-MiniLM-L6-v2, bge-base-en-v1.5, bge-large-en-v1.5,
ModernBERT-base and nomic-embed-text-v1.5 and random weights in f16, which vecmill and
sentence-transformers load:

    python scripts/bench/gpu_models.py target/gpu-models --tokenizer folder/with/tokenizer.json

The tokenizer is any WordPiece with BERT's 30,522 words; newer families have a few more, which no text
leads to. All pool by mean, so that all do the same.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedModel

VOCABULARY = 30_522
POSITIONS = 512
SHAPES = {"minilm": (384, 6, 12), "bge-base": (768, 12, 12), "bge-large": (1024, 24, 16)}
# Configuration, model and positions; all else is as transformers has it by default, which is as published.
FAMILIES = {
    "modernbert-base": ("ModernBertConfig", "ModernBertModel", 8192),
    "nomic-base": ("NomicBertConfig", "NomicBertModel", 2048),
}
BIAS_STD = 0.02
# Words apart, positions and types close: mean vectors of different texts then differ.
EMBEDDING_STD = {"word": 0.08, "position": 0.02, "token_type": 0.01}
MODULES = ("", "1_Pooling", "2_Normalize")
MODULE_TYPES = ("Transformer", "Pooling", "Normalize")


def random_model(hidden: int, layers: int, heads: int, device: str) -> BertModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=POSITIONS,
    )
    torch.manual_seed(1)
    with torch.device(device):
        model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=BIAS_STD)
        for name, std in EMBEDDING_STD.items():
            getattr(model.embeddings, f"{name}_embeddings").weight.normal_(std=std)
    return model.half()


def of_family(name: str, device: str) -> PreTrainedModel:
    config_name, model_name, positions = FAMILIES[name]
    config = getattr(transformers, config_name)(max_position_embeddings=positions)
    torch.manual_seed(1)
    with torch.device(device):
        model = getattr(transformers, model_name)(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embeddings" in key and parameter.dim() == 2:
                parameter.normal_(std=EMBEDDING_STD["token_type" if "type" in key else "word"])
    return model.half()


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_pipeline(folder: Path, hidden: int, positions: int = POSITIONS) -> None:
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(MODULES, MODULE_TYPES))
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": positions})
    names = {
        kind: f"[{kind[:-6].upper()}]"
        for kind in ("cls_token", "sep_token", "pad_token", "unk_token")
    }
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": positions, **names}
    write_json(folder / "tokenizer_config.json", facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the models' folders")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with a tokenizer.json"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    every = [*SHAPES, *FAMILIES]
    parser.add_argument("--models", nargs="+", choices=every, default=list(SHAPES))
    args = parser.parse_args()
    tokenizer = args.tokenizer / "tokenizer.json"
    words = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    if words != VOCABULARY:
        raise SystemExit(f"{tokenizer}: {words} words, expected {VOCABULARY}")
    for name in args.models:
        folder = args.out / name
        if name in SHAPES:
            model, positions = random_model(*SHAPES[name], args.device), POSITIONS
        else:
            model, positions = of_family(name, args.device), FAMILIES[name][2]
        model.save_pretrained(folder)
        write_pipeline(folder, model.config.hidden_size, positions)
        shutil.copy(tokenizer, folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{folder}: {size >> 20} MiB")


if __name__ == "__main__":
    main()
