"""The official OpenAI client against a running server that serves all-MiniLM-L6-v2."""

import argparse
import asyncio
import base64
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from cases import (
    DIMENSIONS,
    TEXT,
    TOKENS,
    expect,
    expect_close,
    expect_error_body,
    expect_unit,
    run,
)
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types import CreateEmbeddingResponse

MODEL = "all-MiniLM-L6-v2"
OTHERS = ["All human beings are born free and equal.", "人人生而自由。", "🎨 Improve structure."]
SAME_BATCH = 1e-6
OTHER_BATCH = 1e-4
CONCURRENT = 64


def embed(client: OpenAI, **request: Any) -> CreateEmbeddingResponse:
    return client.embeddings.create(**{"model": MODEL, "input": TEXT, **request})


def vector(client: OpenAI, **request: Any) -> list[float]:
    return embed(client, **request).data[0].embedding


def single_string(client: OpenAI) -> None:
    reply = embed(client)
    expect(reply.object == "list" and len(reply.data) == 1, f"{reply.object}, {len(reply.data)} rows")
    row = reply.data[0]
    expect(row.object == "embedding" and row.index == 0, f"{row.object} {row.index}")
    expect(len(row.embedding) == DIMENSIONS, f"{len(row.embedding)} dimensions")
    expect_unit(row.embedding)
    expect(isinstance(reply.model, str) and reply.model != "", f"model {reply.model!r}")


def list_of_strings(client: OpenAI) -> None:
    reply = embed(client, input=OTHERS)
    expect([row.index for row in reply.data] == [0, 1, 2], "indices out of order")
    for text, row in zip(OTHERS, reply.data):
        expect_close(row.embedding, vector(client, input=text), OTHER_BATCH)


def token_array(client: OpenAI) -> None:
    expect_close(vector(client, input=TOKENS), vector(client), SAME_BATCH)


def token_arrays(client: OpenAI) -> None:
    reply = embed(client, input=[TOKENS, [101, 102], TOKENS])
    expect(len(reply.data) == 3, f"{len(reply.data)} rows")
    expect_close(reply.data[0].embedding, vector(client), OTHER_BATCH)
    expect_close(reply.data[2].embedding, reply.data[0].embedding, OTHER_BATCH)


def formats(client: OpenAI) -> None:
    implicit = vector(client)
    expect_close(implicit, vector(client, encoding_format="float"), SAME_BATCH)
    raw = base64.b64decode(vector(client, encoding_format="base64"))
    expect_close(implicit, struct.unpack(f"<{DIMENSIONS}f", raw), SAME_BATCH)


def fewer_dimensions(client: OpenAI) -> None:
    short = vector(client, dimensions=64)
    expect_unit(short)
    leading = vector(client)[:64]
    length = sum(x * x for x in leading) ** 0.5
    expect_close(short, [x / length for x in leading], 1e-5)
    expect_close(vector(client, dimensions=DIMENSIONS), vector(client), SAME_BATCH)


def usage(client: OpenAI) -> None:
    one, three = embed(client).usage, embed(client, input=[TEXT] * 3).usage
    expect(one.prompt_tokens == one.total_tokens == len(TOKENS), f"one text: {one}")
    expect(three.prompt_tokens == three.total_tokens == 3 * len(TOKENS), f"three texts: {three}")
    ids = embed(client, input=TOKENS).usage
    expect(ids.prompt_tokens == len(TOKENS), f"token ids: {ids}")


def long_text(client: OpenAI) -> None:
    reply = embed(client, input="human rights " * 1000)
    expect(reply.usage.prompt_tokens == 256, f"cut to {reply.usage.prompt_tokens} tokens")


def most_inputs(client: OpenAI) -> None:
    reply = embed(client, input=["hi"] * 2048)
    expect([row.index for row in reply.data] == list(range(2048)), "rows missing or out of order")


def other_fields(client: OpenAI) -> None:
    reply = embed(client, user="someone", extra_body={"unheard_of": {"deep": [1]}})
    expect(len(reply.data) == 1, f"{len(reply.data)} rows")


def concurrent(base_url: str, client: OpenAI) -> None:
    async def ask() -> list[CreateEmbeddingResponse]:
        async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as asking:
            requests = (
                asking.embeddings.create(model=MODEL, input=[f"text {i}", TEXT])
                for i in range(CONCURRENT)
            )
            return await asyncio.gather(*requests)

    expected = vector(client)
    replies = asyncio.run(ask())
    for reply in replies:
        expect_close(reply.data[1].embedding, expected, OTHER_BATCH)
    distinct = {tuple(reply.data[0].embedding) for reply in replies}
    expect(len(distinct) == CONCURRENT, f"{len(distinct)} distinct vectors for {CONCURRENT} texts")


def refused(expected: type[APIStatusError], param: str | None, call: Callable[[], object]) -> None:
    try:
        call()
    except expected as error:
        expect_error_body(error.body)
        # Down to the place within a list or not, as the server likes.
        named = error.param and error.param.split("[")[0]
        expect(named in (None, param), f"param {error.param!r} instead of {param!r}")
    else:
        raise AssertionError("was accepted")


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "an empty string": ("input", {"input": ""}),
    "an empty string among others": ("input", {"input": ["fine", ""]}),
    "an empty list": ("input", {"input": []}),
    "an empty token array": ("input", {"input": [[]]}),
    "2,049 inputs": ("input", {"input": ["hi"] * 2049}),
    "a number as input": ("input", {"input": 7}),
    "an object as input": ("input", {"input": {"text": TEXT}}),
    "null as input": ("input", {"input": None}),
    "texts mixed with tokens": ("input", {"input": [TEXT, 101]}),
    "token ids as fractions": ("input", {"input": [101.5]}),
    "a negative token id": ("input", {"input": [-1]}),
    "a token id past the vocabulary": ("input", {"input": [101, 30522, 102]}),
    "too many dimensions": ("dimensions", {"dimensions": DIMENSIONS + 1}),
    "zero dimensions": ("dimensions", {"dimensions": 0}),
    "negative dimensions": ("dimensions", {"dimensions": -1}),
    "a word for dimensions": ("dimensions", {"dimensions": "many"}),
    "an unknown encoding": ("encoding_format", {"encoding_format": "hex"}),
    "a number as model": ("model", {"model": 7}),
    "an object as model": ("model", {"model": {"name": MODEL}}),
}


def all_cases(base_url: str) -> dict[str, Callable[[], None]]:
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120)
    accepted = {
        "single string": single_string,
        "list of strings": list_of_strings,
        "token array": token_array,
        "list of token arrays": token_arrays,
        "base64, float and the default agree": formats,
        "fewer dimensions": fewer_dimensions,
        "usage counts": usage,
        "a long text is cut": long_text,
        "2,048 inputs": most_inputs,
        "user and unknown fields": other_fields,
    }
    cases: dict[str, Callable[[], None]] = {
        name: partial(case, client) for name, case in accepted.items()
    }
    cases[f"{CONCURRENT} concurrent requests"] = partial(concurrent, base_url, client)
    for name, (param, request) in REFUSED.items():
        call = partial(embed, client, **request)
        cases[f"refuses {name}"] = partial(refused, BadRequestError, param, call)
    moderate = partial(client.moderations.create, input=TEXT)
    cases["unknown endpoint"] = partial(refused, NotFoundError, None, moderate)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:3000/v1")
    sys.exit(1 if run(all_cases(parser.parse_args().base_url)) else 0)


if __name__ == "__main__":
    main()
