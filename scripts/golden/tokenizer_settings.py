"""Ids of tokenizers whose files are at odds with one another, by transformers' fast classes.

    python tokenizer_settings.py

Each case is a tiny model of `testdata/models` with some of its files changed; `testdata/golden/
tokenizer-settings.json` gets the changes and the ids. Needs transformers 4.57, without PyTorch."""

import copy
import json
import shutil
import tempfile
from pathlib import Path

import transformers
from transformers import AutoTokenizer

TESTDATA = Path(__file__).resolve().parents[2] / "testdata"
TEXTS = [
    "Everyone Has The RIGHT to Éducation.",
    "née Ünd İstanbul, 中文字 und [MASK] in <mask> <s> </s> [CLS]",
    "be<tag>and <TAG> <tag>s [tag]   <tag> be",
    "and",
    " and",
]
REMOVED = "(removed)"


def bert(**changes):
    return {"normalizer": changes}


def added(content, **flags):
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {**token, "content": content, **flags}


def config(**keys):
    return {"tokenizer_config.json": keys}


CASED = bert(lowercase=False)
FAST = {"tokenizer_class": "BertTokenizerFast"}
BERTS = {"bert-mean": "BertTokenizer", "distilbert-mean": "DistilBertTokenizer"}

CASES = [
    # name, model, changes of tokenizer.json, other files
    ("lower case in the settings", "bert-mean", CASED,
     config(tokenizer_class="BertTokenizer", do_lower_case=True)),
    ("lower case by the class", "bert-mean", CASED, config(**FAST)),
    ("upper case in the settings", "bert-mean", {}, config(**FAST, do_lower_case=False)),
    ("a class without settings", "bert-mean", CASED,
     config(tokenizer_class="PreTrainedTokenizerFast", do_lower_case=True)),
    ("a class by the model's type", "bert-mean", CASED, config(tokenizer_class=REMOVED)),
    ("a class by the model's settings", "bert-mean", CASED,
     {**config(tokenizer_class=REMOVED), "config.json": {"tokenizer_class": "BertTokenizer"}}),
    ("no settings at all", "bert-mean", CASED, {"tokenizer_config.json": REMOVED}),
    ("lower case of DistilBERT", "distilbert-mean", CASED,
     config(tokenizer_class="DistilBertTokenizer", do_lower_case=True)),
    ("accents kept in the settings", "bert-mean", {}, config(**FAST, strip_accents=False)),
    ("accents kept in the file", "bert-mean", bert(strip_accents=False), config(**FAST)),
    ("accents taken off cased text", "bert-mean", {},
     config(**FAST, do_lower_case=False, strip_accents=True)),
    ("Chinese left whole in the settings", "bert-mean", {},
     config(**FAST, tokenize_chinese_chars=False)),
    ("Chinese left whole in the file", "bert-mean", bert(handle_chinese_chars=False),
     config(**FAST)),
    ("another normaliser", "bert-mean", {"normalizer": {"type": "NFC"}, "replace": True},
     config(**FAST, do_lower_case=True)),
    ("MPNet's lower case", "bert-mean", CASED,
     config(tokenizer_class="MPNetTokenizer", do_lower_case=True, tokenize_chinese_chars=False)),
    ("a space in front in the settings", "roberta-mean", {},
     config(tokenizer_class="RobertaTokenizer", add_prefix_space=True)),
    ("a space in front in the file", "roberta-mean",
     {"pre_tokenizer": {"add_prefix_space": True}}, config(tokenizer_class="RobertaTokenizer")),
    ("a space in front of a plain class", "roberta-mean",
     {"pre_tokenizer": {"add_prefix_space": True}}, {}),
    ("XLM-RoBERTa's class", "xlm-roberta-cls", {}, config(tokenizer_class="XLMRobertaTokenizer")),
    ("special tokens that only the class knows", "bert-mean", {"added_tokens": []},
     config(**FAST)),
    ("special tokens that only the settings know", "bert-mean", {"added_tokens": []}, {}),
    ("special tokens that nobody knows", "bert-mean", {"added_tokens": []},
     config(**dict.fromkeys(("cls_token", "sep_token", "pad_token", "unk_token"), REMOVED))),
    ("no mask", "bert-mean", {"added_tokens": []}, config(**FAST, mask_token=None)),
    ("tokens by their ids", "bert-mean", {},
     config(added_tokens_decoder={"4": added("[MASK]", special=True), "383": added("<tag>")})),
    ("tokens by their ids, looked for in normalised text", "bert-mean", {},
     config(added_tokens_decoder={"383": added("<Tag>", normalized=True)})),
    ("a single word", "bert-mean", {},
     config(added_tokens_decoder={"383": added("<tag>", single_word=True)})),
    ("other properties than in the file", "bert-mean", {},
     config(added_tokens_decoder={"40": added("be", single_word=True), "4": added("[MASK]")})),
    ("a known word as a token", "bert-mean", {}, config(additional_special_tokens=["and", "be"])),
    ("more special tokens", "bert-mean", {},
     {"special_tokens_map.json": {"additional_special_tokens": ["<tag>"]}}),
    ("a map of special tokens", "bert-mean", {"added_tokens": []},
     {"special_tokens_map.json": {"mask_token": added("[MASK]", lstrip=True)}}),
    ("a map beside tokens by their ids", "bert-mean", {},
     {**config(added_tokens_decoder={"4": added("[MASK]", special=True)}),
      "special_tokens_map.json": {"additional_special_tokens": ["<tag>"]}}),
    ("an older file of tokens", "bert-mean", {}, {"added_tokens.json": {"<tag>": 383}}),
    ("RoBERTa's mask", "roberta-mean", {}, config(tokenizer_class="RobertaTokenizer")),
    ("RoBERTa's mask as an object", "roberta-mean", {},
     config(tokenizer_class="RobertaTokenizer",
            mask_token={"__type": "AddedToken", **added("<mask>", rstrip=True)})),
    ("sections for cutting and padding", "bert-mean",
     {"truncation": {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
      "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None,
                  "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}, "replace": True}, {}),
]


def changed(value, changes):
    """An object with some keys changed, deeper where both are objects."""
    value = copy.deepcopy(value)
    for key, change in changes.items():
        if change == REMOVED:
            value.pop(key, None)
        elif isinstance(change, dict) and isinstance(value.get(key), dict) and not changes.get("replace"):
            value[key] = changed(value[key], change)
        elif key != "replace":
            value[key] = change
    return value


def files(model, tokenizer, others):
    """The files that differ from the model's own, whole; None for one that is removed."""
    folder = TESTDATA / "models" / model

    def read(name):
        return json.loads((folder / name).read_text()) if (folder / name).exists() else {}

    result = {name: None if change == REMOVED else changed(read(name), change)
              for name, change in others.items()}
    if tokenizer:
        result["tokenizer.json"] = changed(read("tokenizer.json"), tokenizer)
    return result


def ids(model, changes):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(TESTDATA / "models" / model, folder, dirs_exist_ok=True)
        for name, contents in changes.items():
            path = Path(folder) / name
            path.unlink(missing_ok=True)
            if contents is not None:
                path.write_text(json.dumps(contents))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.is_fast
        return [tokenizer(text, truncation=False, padding=False)["input_ids"] for text in TEXTS]


def main():
    cases = []
    for name, model, tokenizer, others in CASES:
        whole = files(model, tokenizer, others)
        # Vocabularies stay where they are: of tokenizer.json only the other keys are kept.
        kept = {file: contents and {key: value for key, value in contents.items() if key != "model"}
                for file, contents in whole.items()}
        cases.append({"name": name, "model": model, "files": kept, "ids": ids(model, whole)})
    document = {"transformers": transformers.__version__, "texts": TEXTS, "cases": cases}
    path = TESTDATA / "golden" / "tokenizer-settings.json"
    # A case a line.
    text = json.dumps(document, ensure_ascii=False).replace('{"name":', '\n{"name":')
    path.write_text(text + "\n")
    print(f"{path}: {len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
