"""Makes what testdata has of PyTorch's pickles: testdata/models/bert-pickle, which is bert-mean with its
weights as a pickle, and testdata/pickles, small tables in each form with what they hold."""

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from transformers import BertModel

TESTDATA = Path(__file__).resolve().parents[2] / "testdata"


def make_model() -> None:
    source, folder = TESTDATA / "models" / "bert-mean", TESTDATA / "models" / "bert-pickle"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(BertModel.from_pretrained(source).state_dict(), folder / "pytorch_model.bin")


def table() -> OrderedDict[str, torch.Tensor]:
    """A tensor of each kind that a table of weights may have."""
    rows = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    columns = torch.arange(12, dtype=torch.float16).reshape(3, 4) / 4
    return OrderedDict(
        whole=rows,
        tied=rows,
        part=rows[1:3],
        transposed=rows.t(),
        cut_out=rows[1:, 2:5],
        every_other=rows[:, ::2],
        one_column=rows[:, 3:4],
        half=columns,
        half_permuted=columns.reshape(3, 2, 2).permute(2, 0, 1),
        bfloat=torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16),
        parameter=torch.nn.Parameter(torch.tensor([0.5, -0.25])),
        scalar=torch.tensor(7.5),
        empty=torch.empty(0, 3),
        double=torch.tensor([0.1], dtype=torch.float64),
        position_ids=torch.arange(5).unsqueeze(0),
        mask=torch.tensor([True, False]),
        bytes=torch.tensor([1, 255], dtype=torch.uint8),
    )


def facts(tensors: dict[str, torch.Tensor]) -> dict:
    """What each tensor is; its numbers where vecmill reads them."""
    return {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "values": tensor.detach().float().flatten().tolist(),
        }
        for name, tensor in tensors.items()
    }


def make_tables() -> None:
    folder = TESTDATA / "pickles"
    folder.mkdir(exist_ok=True)
    tensors = table()
    torch.manual_seed(15)
    layer = torch.nn.Linear(3, 2)
    expected = {"table.bin": facts(tensors), "before-1.6.bin": facts(tensors)}
    torch.save(tensors, folder / "table.bin")
    torch.save(tensors, folder / "before-1.6.bin", _use_new_zipfile_serialization=False)
    for protocol in (2, 3, 4, 5):
        name = f"protocol-{protocol}.pt"
        torch.save(layer.state_dict(), folder / name, pickle_protocol=protocol)
        expected[name] = facts(layer.state_dict())
    # Formats without a class of storages.
    newer = OrderedDict(
        words=torch.tensor([1, 65535], dtype=torch.uint16),
        narrow=torch.tensor([1.0, -0.5]).to(torch.float8_e4m3fn),
    )
    torch.save(newer, folder / "newer.bin")
    expected["newer.bin"] = facts(newer)
    make_shards(folder / "shards", layer)
    text = json.dumps(expected, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def make_shards(folder: Path, layer: torch.nn.Linear) -> None:
    folder.mkdir(exist_ok=True)
    shards = {
        f"pytorch_model-{number:05}-of-00002.bin": {name: tensor}
        for number, (name, tensor) in enumerate(layer.state_dict().items(), 1)
    }
    for shard, tensors in shards.items():
        torch.save(tensors, folder / shard)
    index = {
        "metadata": {"total_size": 32},
        "weight_map": {name: shard for shard, tensors in shards.items() for name in tensors},
    }
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    make_model()
    make_tables()
