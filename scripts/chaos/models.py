"""Model folders that somebody damaged or made to do harm, from one that is good."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

WEIGHTS = "model.safetensors"


def edit(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes a JSON file."""

    def apply(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        change(value)
        (folder / file).write_text(json.dumps(value))

    return apply


def bytes_of(file: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content)

    return apply


def link(file: str, target: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)

    return apply


def pipe(file: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return apply


def cut(file: str, keep: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        (folder / file).write_bytes(content[: int(len(content) * keep)])

    return apply


def header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes the header of the weights' file."""

    def apply(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        value = json.loads(content[8 : 8 + length])
        change(value)
        made = json.dumps(value).encode()
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(made)) + made + content[8 + length :])

    return apply


def first(tensors: dict) -> dict:
    return next(tensor for name, tensor in tensors.items() if name != "__metadata__")


def lying_map(value: dict) -> None:
    """A `Precompiled` normaliser whose map says that it has two gigabytes."""
    value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAAgAAAAAAAAAAA"}


def growing(value: dict) -> None:
    """A normaliser that makes a thousand characters of each."""
    rule = {"type": "Replace", "pattern": {"Regex": "."}, "content": "ab" * 500}
    value["normalizer"] = {"type": "Sequence", "normalizers": [rule, rule]}


HARM: dict[str, Callable[[Path], None]] = {
    **{
        f"pipe-{file}": pipe(file)
        for file in ("config.json", "tokenizer.json", "modules.json", WEIGHTS)
    },
    **{
        f"zero-{file}": link(file, "/dev/zero")
        for file in (
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "modules.json",
            WEIGHTS,
        )
    },
    **{
        f"dangling-{file}": link(file, "../../blobs/0000")
        for file in (
            "config.json",
            "tokenizer.json",
            "modules.json",
            "sentence_bert_config.json",
            WEIGHTS,
        )
    },
    **{f"empty-{file}": bytes_of(file, b"") for file in ("config.json", "tokenizer.json", WEIGHTS)},
    **{
        f"html-{file}": bytes_of(file, b"<!doctype html><html>sign in</html>")
        for file in ("config.json", WEIGHTS)
    },
    **{f"cut-{file}": cut(file, 0.7) for file in ("config.json", "tokenizer.json", WEIGHTS)},
    "deep-config": bytes_of("config.json", b"[" * 200_000 + b"]" * 200_000),
    "deep-tokenizer": bytes_of("tokenizer.json", b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "lying-charsmap": edit("tokenizer.json", lying_map),
    "growing-normalizer": edit("tokenizer.json", growing),
    "no-unknown-token": edit(
        "tokenizer.json", lambda value: value["model"].update(unk_token="[NONE]")
    ),
    "ids-twice": edit("tokenizer.json", lambda value: value["model"]["vocab"].update({"zzzzq": 5})),
    "id-beyond": edit(
        "tokenizer.json", lambda value: value["model"]["vocab"].update({"zzzzq": 4_000_000_000})
    ),
    "bad-regex": edit(
        "tokenizer.json",
        lambda value: value.update(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "(" * 500},
                "behavior": "Isolated",
                "invert": False,
            }
        ),
    ),
    "classifier": edit(
        "config.json", lambda value: value.update(architectures=["BertForSequenceClassification"])
    ),
    "huge-sizes": edit(
        "config.json", lambda value: value.update(hidden_size=1 << 40, intermediate_size=1 << 41)
    ),
    "zero-heads": edit("config.json", lambda value: value.update(num_attention_heads=0)),
    "negative-layers": edit("config.json", lambda value: value.update(num_hidden_layers=-1)),
    "many-layers": edit("config.json", lambda value: value.update(num_hidden_layers=1 << 31)),
    "offsets-beyond": header(lambda value: first(value).update(data_offsets=[0, 1 << 60])),
    "offsets-backwards": header(lambda value: first(value).update(data_offsets=[4096, 0])),
    "shape-overflows": header(lambda value: first(value).update(shape=[1 << 62, 1 << 62])),
    "header-size": bytes_of(WEIGHTS, struct.pack("<Q", 1 << 62) + b"{}"),
    "module-outside": edit("modules.json", lambda value: value[1].update(path="../../../../etc")),
    "unknown-module": edit("modules.json", lambda value: value[1].update(type="os.system")),
}


def hostile_folders(good: Path, into: Path) -> dict[str, Path]:
    """Writes one folder for each kind of harm; what is not harmed is linked or copied."""
    folders = {}
    for name, harm in HARM.items():
        folder = into / name
        shutil.copytree(good, folder, ignore=shutil.ignore_patterns(WEIGHTS))
        (folder / WEIGHTS).symlink_to((good / WEIGHTS).resolve())
        harm(folder)
        folders[name] = folder
    return folders
