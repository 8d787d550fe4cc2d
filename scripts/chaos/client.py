"""HTTP over plain sockets, as many clients at once, and what became of each of their requests.

A request counts as lost when it was sent whole and neither a right reply nor a refusal that says
why came back. Anything else that a server says is an answer.
"""

import asyncio
import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

HOST = "127.0.0.1"
PATIENCE_S = 30.0
AFTER_REFUSAL_S = 0.1
TOLERANCE = 1e-4

# What a server may say that is no vector: the client's fault, busy, or not able to.
REFUSALS = {400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503, 504}


@dataclass
class Tally:
    """What became of requests."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    gone: int = 0  # clients that left before the reply, on purpose
    lost: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        return self.answered + self.lost

    def lose(self, reason: str) -> None:
        self.lost += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def __add__(self, other: "Tally") -> "Tally":
        reasons = dict(self.reasons)
        for reason, count in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        return Tally(
            self.sent + other.sent,
            self.answered + other.answered,
            self.refused + other.refused,
            self.gone + other.gone,
            self.lost + other.lost,
            reasons,
        )


@dataclass
class Request:
    """A request, and the vectors that its reply must have where these are known."""

    path: str
    body: bytes
    vectors: list[list[float]] | None = None
    headers: tuple[str, ...] = ()

    def encode(self, *, close: bool = False) -> bytes:
        lines = [
            f"POST {self.path} HTTP/1.1",
            "host: chaos",
            "content-type: application/json",
            f"content-length: {len(self.body)}",
            *self.headers,
            *(["connection: close"] if close else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def embeddings(texts: list[str], vectors: list[list[float]] | None = None) -> Request:
    return Request("/v1/embeddings", json.dumps({"model": "m", "input": texts}).encode(), vectors)


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split()[1])
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join([chunk async for chunk in chunks(reader)])
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return status, body, headers.get("connection") != "close"


async def chunks(reader: asyncio.StreamReader):
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")


def is_right(request: Request, body: bytes) -> bool:
    if request.vectors is None:
        return True
    rows = [row["embedding"] for row in json.loads(body)["data"]]
    return len(rows) == len(request.vectors) and all(
        len(row) == len(wanted) and all(abs(x - y) <= TOLERANCE for x, y in zip(row, wanted))
        for row, wanted in zip(rows, request.vectors)
    )


def judge(tally: Tally, request: Request, status: int, body: bytes) -> None:
    if status == 200 and is_right(request, body):
        tally.answered += 1
    elif status == 200:
        tally.lose("a wrong reply")
    elif status in REFUSALS:
        tally.refused += 1
    else:
        tally.lose(f"status {status}")


async def ask(port: int, request: Request, tally: Tally, patience: float = PATIENCE_S) -> None:
    """One request on a connection of its own."""
    tally.sent += 1
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        tally.refused += 1  # nobody listens: nothing was accepted
        return
    try:
        writer.write(request.encode(close=True))
        await writer.drain()
        status, body, _ = await asyncio.wait_for(read_reply(reader), patience)
        judge(tally, request, status, body)
    except TimeoutError:
        tally.lose(f"no reply in {patience:.0f} s")
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        tally.lose(f"connection: {type(error).__name__}")
    finally:
        writer.close()


async def closed_loop(
    port: int, requests: Iterable[Request], stop: asyncio.Event, tally: Tally
) -> None:
    """One client that keeps its connection and sends its next request after the last reply."""
    connection = None
    for request in requests:
        if stop.is_set():
            break
        tally.sent += 1
        try:
            if connection is None:
                connection = await asyncio.open_connection(HOST, port)
            reader, writer = connection
            writer.write(request.encode())
            status, body, stays = await asyncio.wait_for(read_reply(reader), PATIENCE_S)
            judge(tally, request, status, body)
            if status in REFUSALS:
                await asyncio.sleep(AFTER_REFUSAL_S)
            if not stays:
                writer.close()
                connection = None
        except TimeoutError:
            tally.lose(f"no reply in {PATIENCE_S:.0f} s")
            connection = None
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.lose(f"connection: {type(error).__name__}")
            connection = None
    if connection is not None:
        connection[1].close()


async def open_loop(
    port: int, requests: Iterable[Request], rate: float, seconds: float, tally: Tally
) -> None:
    """Requests at random times, `rate` a second on average, whatever becomes of the ones before."""
    loop = asyncio.get_running_loop()
    random_times = random.Random(7)
    at = began = loop.time()
    tasks = []
    for request in requests:
        at += random_times.expovariate(rate)
        if at - began > seconds:
            break
        await asyncio.sleep(max(0.0, at - loop.time()))
        tasks.append(asyncio.create_task(ask(port, request, tally)))
    await asyncio.gather(*tasks)


async def vanish(port: int, request: Request, tally: Tally, after_s: float) -> None:
    """Sends a request and leaves, by a reset, without waiting for the reply."""
    tally.sent += 1
    try:
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(request.encode())
        await asyncio.sleep(after_s)
        writer.transport.abort()
    except OSError:
        pass
    tally.gone += 1


async def read_slowly(port: int, request: Request, stop: asyncio.Event, tally: Tally) -> None:
    """Sends a request and takes its reply a few bytes a second."""
    tally.sent += 1
    tally.gone += 1
    try:
        reader, writer = await asyncio.open_connection(HOST, port, limit=1024)
        writer.write(request.encode())
        while not stop.is_set():
            writer.transport.resume_reading() if not writer.transport.is_reading() else None
            if not await asyncio.wait_for(reader.read(64), PATIENCE_S):
                break
            await asyncio.sleep(1.0)
        writer.transport.abort()
    except (TimeoutError, OSError, RuntimeError):
        pass


async def write_slowly(port: int, request: Request, stop: asyncio.Event, tally: Tally) -> None:
    """Sends a head and one byte of the body, and no more."""
    tally.sent += 1
    tally.gone += 1
    try:
        _, writer = await asyncio.open_connection(HOST, port)
        head = request.encode()[: -len(request.body)]
        writer.write(head + request.body[:1])
        await stop.wait()
        writer.transport.abort()
    except OSError:
        pass


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))
