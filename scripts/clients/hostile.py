"""Bad input against a running server that serves all-MiniLM-L6-v2. After each case the server must
still answer correctly."""

import argparse
import asyncio
import json
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
from cases import DIMENSIONS, TEXT, expect, expect_close, expect_error_body, expect_unit, run

PATH = "/v1/embeddings"
JSON = {"content-type": "application/json"}
OVERSIZED = 5_000_000
DEEP = 100_000
DISCONNECTING = 200
NEIGHBOURS = 20
TOLERANCE = 1e-4

Status = int | tuple[int, ...]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


POSTED: dict[str, tuple[bytes, Status]] = {
    "empty body": (b"", 400),
    "null": (b"null", 400),
    "a bare string": (b'"text"', 400),
    "a bare list": (b"[]", 400),
    "an empty object": (b"{}", 400),
    "malformed JSON": (b'{"input": "text"', 400),
    "text after the JSON": (body(input=TEXT) + b" more", 400),
    "not JSON at all": (b"\x00\x01\x02\x03", 400),
    "invalid UTF-8": (b'{"model":"m","input":"\xff\xfe"}', 400),
    "a raw NUL byte": (b'{"model":"m","input":"a\x00b"}', 400),
    "an escaped NUL": (body(input="a\0b"), 200),
    "control characters": (body(input="\x01\x02\x1b[31m"), 200),
    "only spaces": (body(input="   \n\t "), 200),
    "a lone high surrogate": (rb'{"model":"m","input":"\ud800"}', 400),
    "a lone low surrogate": (rb'{"model":"m","input":"x\udc00y"}', 400),
    "a surrogate pair": (rb'{"model":"m","input":"\ud83c\udfa8"}', 200),
    "unassigned and private characters": (body(input="\U000e0fff\ue000\uffff"), 200),
    "2,049 inputs": (body(input=["hi"] * 2049), 400),
    "a text of 100,000 tokens": (body(input="human " * 100_000), 200),
    "a word of 1,000,000 letters": (body(input="a" * 1_000_000), 200),
    "a body of 5 MB": (body(input="a" * OVERSIZED), 413),
    "input missing": (body(), 400),
    "a number as input": (body(input=5), 400),
    "true as input": (body(input=True), 400),
    "a list of nulls": (body(input=[None]), 400),
    "lists three deep": (body(input=[[[101]]]), 400),
    "a token id of 10^30": (body(input=[10**30]), 400),
    "a token id of 1e999": (b'{"model":"m","input":[1e999]}', 400),
    "a list as encoding_format": (body(input=TEXT, encoding_format=["float"]), 400),
    "fractional dimensions": (body(input=TEXT, dimensions=1.5), 400),
    "enormous dimensions": (body(input=TEXT, dimensions=2**63), 400),
    "unknown fields": (body(input=TEXT, surprise={"a": [1, {"b": None}]}), 200),
    "a byte order mark": (b"\xef\xbb\xbf" + body(input=TEXT), 200),
    "two byte order marks": (b"\xef\xbb\xbf" * 2 + body(input=TEXT), 400),
    "a no-break space": (b'{"model":"m",\xc2\xa0"input":"a"}', 400),
    "UTF-16": (body(input=TEXT).decode().encode("utf-16"), 400),
    "NaN": (b'{"model":"m","input":"a","x":NaN}', 400),
    "a field twice": (b'{"model":"m","input":"a","input":"b"}', 400),
    "a field of another server": (body(input=TEXT, late_chunking=True), 400),
    "no model": (json.dumps({"input": TEXT}).encode(), 200),
    "a whole number as a fraction": (body(input=TEXT, dimensions=384.0), 200),
    "lists 100,000 deep": (b"[" * DEEP + b"]" * DEEP, 400),
    "an input 100,000 deep": (b'{"model":"m","input":' + b"[" * DEEP + b"]" * DEEP + b"}", 400),
    "objects 100,000 deep": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, 400),
}


def one_of(status: Status) -> tuple[int, ...]:
    return status if isinstance(status, tuple) else (status,)


def check_reply(response: httpx.Response, expected: Status) -> None:
    status = response.status_code
    expect(status in one_of(expected), f"status {status}: {response.text[:120]}")
    if status >= 400:
        expect_error_body(response.json().get("error"))
    else:
        expect_unit(response.json()["data"][0]["embedding"])


def embed(client: httpx.Client) -> list[float]:
    response = client.post(PATH, content=body(input=TEXT), headers=JSON)
    check_reply(response, 200)
    return response.json()["data"][0]["embedding"]


def post(client: httpx.Client, content: bytes, expected: Status) -> None:
    check_reply(client.post(PATH, content=content, headers=JSON), expected)


def wrong_methods(client: httpx.Client) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        check_reply(client.request(method, PATH), 405)


def unknown_paths(client: httpx.Client) -> None:
    for path in ("/nothing", "/v1/nothing", "/v1/embeddings/more", "/%00", "/v1/../../etc/passwd"):
        check_reply(client.post(path, content=body(input=TEXT), headers=JSON), 404)


def wrong_content_type(client: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml"):
        response = client.post(PATH, content=body(input=TEXT), headers={"content-type": kind})
        check_reply(response, (400, 415))


def oversized_without_length(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model":"m","input":"'
        for _ in range(OVERSIZED // 10_000):
            yield b"a" * 10_000
        yield b'"}'

    check_reply(client.post(PATH, content=chunks(), headers=JSON), 413)


def request_head(length: int) -> bytes:
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}"
    )
    return head.encode() + b"\r\n\r\n"


def raw_status(address: tuple[str, int], sent: bytes) -> int | None:
    """The status that answers `sent`, None where no HTTP comes back."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(sent)
        try:
            line = connection.recv(4096).split(b"\r\n")[0]
        except ConnectionResetError:
            return None
    return int(line.split()[1]) if line.startswith(b"HTTP/") else None


def raw(address: tuple[str, int], sent: bytes, expected: tuple[int | None, ...]) -> None:
    status = raw_status(address, sent)
    expect(status in expected, f"status {status}")


def promised_but_not_sent(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(request_head(10_000) + b'{"input":')


async def disconnect(address: tuple[str, int], index: int) -> None:
    _, writer = await asyncio.open_connection(*address)
    content = body(input=["human rights " * 50] * 4)
    sent = content if index % 2 else content[: len(content) // 2]
    writer.write(request_head(len(content)) + sent)
    await writer.drain()
    await asyncio.sleep(0.001 * (index % 20))
    writer.transport.abort()


def mass_disconnect(address: tuple[str, int]) -> None:
    async def all_of_them() -> None:
        await asyncio.gather(*(disconnect(address, i) for i in range(DISCONNECTING)))

    asyncio.run(all_of_them())


def bad_neighbours(base_url: str, expected: list[float]) -> None:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=base_url, timeout=120) as client:
            bodies = [body(input=TEXT), body(input=[TEXT, ""])] * NEIGHBOURS
            return await asyncio.gather(*(client.post(PATH, content=b, headers=JSON) for b in bodies))

    replies = asyncio.run(ask())
    for good, bad in zip(replies[::2], replies[1::2]):
        check_reply(good, 200)
        expect_close(good.json()["data"][0]["embedding"], expected, TOLERANCE)
        check_reply(bad, 400)


def all_cases(client: httpx.Client, expected: list[float]) -> dict[str, Callable[[], None]]:
    url = urlsplit(str(client.base_url))
    address = (url.hostname or "127.0.0.1", url.port or 80)
    cases: dict[str, Callable[[], None]] = {
        name: partial(post, client, content, status) for name, (content, status) in POSTED.items()
    }
    return cases | {
        "a body of 5 MB in chunks": partial(oversized_without_length, client),
        "wrong methods": partial(wrong_methods, client),
        "unknown paths": partial(unknown_paths, client),
        "wrong content types": partial(wrong_content_type, client),
        "not HTTP": partial(raw, address, b"\x16\x03\x01 nonsense\r\n\r\n", (400, None)),
        "a length of 10^12": partial(raw, address, request_head(10**12), (413,)),
        "a header of 1 MB": partial(
            raw, address, b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 1_000_000, (400, 431, None)
        ),
        "a body that never comes": partial(promised_but_not_sent, address),
        f"{DISCONNECTING} clients that hang up": partial(mass_disconnect, address),
        "bad requests beside good ones": partial(bad_neighbours, str(client.base_url), expected),
    }


def then_still_answers(case: Callable[[], None], client: httpx.Client, expected: list[float]) -> None:
    case()
    expect_close(embed(client), expected, TOLERANCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:3000")
    with httpx.Client(base_url=parser.parse_args().base_url, timeout=120) as client:
        expected = embed(client)
        expect(len(expected) == DIMENSIONS, f"{len(expected)} dimensions")
        cases = all_cases(client, expected)
        checked = {
            name: partial(then_still_answers, case, client, expected) for name, case in cases.items()
        }
        sys.exit(1 if run(checked) else 0)


if __name__ == "__main__":
    main()
