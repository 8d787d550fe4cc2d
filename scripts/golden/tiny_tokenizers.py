"""Small tokenizers of the three families that embedding models use, made from the corpus.

The WordPiece and Unigram trainers give other results on every run, so their vocabularies are
derived from byte-pair merges, whose trainer is repeatable."""

import math
from collections import Counter
from dataclasses import dataclass

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]


@dataclass(frozen=True)
class TinyTokenizer:
    tokenizer: Tokenizer
    first: str
    last: str
    pad: str
    unknown: str

    @property
    def vocabulary(self) -> int:
        return self.tokenizer.get_vocab_size()

    def config(self, max_tokens: int) -> dict:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_tokens,
            "cls_token": self.first,
            "sep_token": self.last,
            "pad_token": self.pad,
            "unk_token": self.unknown,
        }


def wrap(tokenizer: Tokenizer, first: str, last: str) -> None:
    specials = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=specials
    )


def merged_pieces(
    texts: list[str],
    size: int,
    normalizer: normalizers.Normalizer,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
) -> Counter[str]:
    """The pieces that byte-pair merges find in `texts`, with how often each one is used."""
    merges = Tokenizer(models.BPE())
    merges.normalizer = normalizer
    merges.pre_tokenizer = pre_tokenizer
    merges.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    used = Counter(token for text in texts for token in merges.encode(text).tokens)
    return Counter({piece: used[piece] for piece in sorted(merges.get_vocab())})


def word_piece(texts: list[str], size: int) -> TinyTokenizer:
    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    half = (size - len(BERT_SPECIALS)) // 2
    pieces = list(merged_pieces(texts, half, normalizer, pre_tokenizer))
    entries = BERT_SPECIALS + pieces + [f"##{piece}" for piece in pieces]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(entries)}, unk_token="[UNK]")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(BERT_SPECIALS)
    wrap(tokenizer, "[CLS]", "[SEP]")
    return TinyTokenizer(tokenizer, "[CLS]", "[SEP]", "[PAD]", "[UNK]")


def byte_level_bpe(texts: list[str], size: int) -> TinyTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=ROBERTA_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    sep, cls = ((token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>"))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=False)
    return TinyTokenizer(tokenizer, "<s>", "</s>", "<pad>", "<unk>")


def unigram(texts: list[str], size: int) -> TinyTokenizer:
    normalizer = normalizers.NFKC()
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    pieces = merged_pieces(texts, size - len(ROBERTA_SPECIALS), normalizer, pre_tokenizer)
    total = pieces.total()
    scored = [(piece, round(math.log((uses + 1) / total), 4)) for piece, uses in pieces.items()]
    entries = [(special, 0.0) for special in ROBERTA_SPECIALS] + scored
    tokenizer = Tokenizer(models.Unigram(entries, unk_id=ROBERTA_SPECIALS.index("<unk>")))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(ROBERTA_SPECIALS)
    wrap(tokenizer, "<s>", "</s>")
    return TinyTokenizer(tokenizer, "<s>", "</s>", "<pad>", "<unk>")
