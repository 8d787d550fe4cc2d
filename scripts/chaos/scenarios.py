"""What goes wrong around a server, one function each: the fault, while clients ask.

Every scenario starts a server of its own, has clients ask for vectors that are known, and tells what
became of each request and how much memory the server had at most.
"""

import asyncio
import itertools
import json
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from client import (
    Request,
    Tally,
    ask,
    closed_loop,
    embeddings,
    open_loop,
    read_slowly,
    vanish,
    write_slowly,
)
from models import hostile_folders
from server import MIB, Server, serving

# What a loaded server takes besides its budget: the program, its threads, connections' buffers.
BESIDES_BUDGET = 150 * MIB
BUDGET = 600 * MIB


@dataclass
class Row:
    """One line of the table."""

    scenario: str
    load: str
    faults: str
    tally: Tally = field(default_factory=Tally)
    peak: int = 0
    limit: int | None = None
    wrong: list[str] = field(default_factory=list)

    def expect(self, condition: bool, complaint: str) -> None:
        if not condition:
            self.wrong.append(complaint)

    @property
    def is_good(self) -> bool:
        within = self.limit is None or self.peak <= self.limit
        return not self.wrong and self.tally.lost == 0 and within


@dataclass
class Setting:
    """What all scenarios share."""

    vecmill: Path
    model: str
    seconds: float
    requests: list[Request] = field(default_factory=list)
    rate: float = 0.0

    def endless(self) -> Iterator[Request]:
        return itertools.cycle(self.requests)

    def serving(self, *flags: str, **how):
        flags = ("--device", "cpu", "--memory-budget", str(BUDGET), *flags)
        return serving(self.vecmill, self.model, *flags, **how)

    def prepare(self) -> None:
        """Learns what right replies are, and how many requests a second the server answers."""
        words = [
            "human",
            "rights",
            "are",
            "the",
            "foundation",
            "of",
            "freedom",
            "justice",
            "and",
            "peace",
            "in",
            "the",
            "world",
        ]
        choose = random.Random(1)
        texts = [
            [" ".join(choose.choices(words, k=choose.randint(2, 60))) for _ in range(4)]
            for _ in range(24)
        ]
        with self.serving() as server:
            self.requests = [embeddings(each, server.embed(each)) for each in texts]
            tally = Tally()
            began = time.monotonic()
            asyncio.run(keep_asking(self, server, tally, self.seconds))
            self.rate = tally.answered / (time.monotonic() - began)


async def keep_asking(
    setting: Setting, server: Server, tally: Tally, seconds: float, during=None, clients: int = 8
) -> None:
    """So many clients ask for so long, or for as long as `during` takes."""
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(closed_loop(server.port, setting.endless(), stop, tally))
        for _ in range(clients)
    ]
    await (asyncio.sleep(seconds) if during is None else during)
    stop.set()
    await asyncio.gather(*tasks)


async def beside(
    setting: Setting, server: Server, tally: Tally, slow: list, stop: asyncio.Event, after: float
) -> None:
    """Clients that come when the slow ones hold what they can hold."""
    tasks = [asyncio.create_task(each) for each in slow]
    await asyncio.sleep(after)
    await keep_asking(setting, server, tally, setting.seconds)
    stop.set()
    await asyncio.gather(*tasks)


async def every_one(server: Server, requests: list[Request], tally: Tally) -> None:
    """All of them, 16 at once."""
    for start in range(0, len(requests), 16):
        part = requests[start : start + 16]
        await asyncio.gather(*(ask(server.port, each, tally) for each in part))
        if tally.lost > 50:
            break  # the verdict is clear, and each one costs its patience


def finish(row: Row, server: Server) -> Row:
    """The server still answers, and its peak is noted."""
    row.peak = max(row.peak, server.peak_bytes())
    row.expect(server.get("/health")[0] == 200, "/health doesn't answer afterwards")
    row.expect(server.get("/ready")[0] == 200, "/ready doesn't say ready afterwards")
    return row


def overload(setting: Setting, times: int) -> Row:
    rate = times * setting.rate
    row = Row(
        f"{times} times the capacity",
        f"{rate:.0f} requests/s, open loop",
        "queue of 128 inputs",
        limit=BUDGET + BESIDES_BUDGET,
    )
    with setting.serving("--queue-capacity", "128") as server:
        asyncio.run(open_loop(server.port, setting.endless(), rate, setting.seconds, row.tally))
        row.expect(row.tally.refused > 0, "nothing was refused")
        return finish(row, server)


def slow_readers(setting: Setting) -> Row:
    readers = 48
    row = Row(
        "slow readers",
        "8 clients",
        f"{readers} that take 64 bytes a second of replies of 1 MB",
        limit=BUDGET + BESIDES_BUDGET,
    )
    large = embeddings(["x"] * 256)
    with setting.serving() as server:
        stop = asyncio.Event()
        slow = [read_slowly(server.port, large, stop, Tally()) for _ in range(readers)]
        asyncio.run(beside(setting, server, row.tally, slow, stop, after=15.0))
        row.expect(row.tally.answered > 0, "the other clients got nothing")
        return finish(row, server)


def slow_writers(setting: Setting) -> Row:
    writers = 600
    row = Row(
        "slow writers",
        "8 clients",
        f"{writers} that sent one byte of a body",
        limit=BUDGET + BESIDES_BUDGET,
    )
    with setting.serving() as server:
        stop = asyncio.Event()
        one = setting.requests[0]
        slow = [write_slowly(server.port, one, stop, Tally()) for _ in range(writers)]
        asyncio.run(beside(setting, server, row.tally, slow, stop, after=2.0))
        row.expect(row.tally.refused == 0, f"{row.tally.refused} of the others were refused")
        return finish(row, server)


def half_heads(setting: Setting) -> Row:
    row = Row("half a head at a stop", "8 clients", "20 heads that never end, SIGTERM")
    with setting.serving() as server:

        async def scene() -> None:
            open_ones = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(20)]
            for _, writer in open_ones:
                writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: ")
            tasks = [
                asyncio.create_task(ask(server.port, request, row.tally))
                for request in setting.requests[:8]
            ]
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*tasks)
            for _, writer in open_ones:
                writer.transport.abort()

        row.peak = server.peak_bytes()
        asyncio.run(scene())
        began = time.monotonic()
        status = server.wait()
        took = time.monotonic() - began
        row.expect(status == 0, f"exit status {status}")
        row.expect(took < 15, f"the stop took {took:.0f} s")
    return row


def vanishing(setting: Setting) -> Row:
    row = Row(
        "vanishing clients",
        "8 clients",
        "400 that leave at random times",
        limit=BUDGET + BESIDES_BUDGET,
    )
    with setting.serving() as server:
        times = random.Random(3)

        async def during() -> None:
            gone = Tally()
            for _ in range(40):
                batch = [
                    vanish(server.port, request, gone, times.random() * 0.2)
                    for request in itertools.islice(setting.endless(), 10)
                ]
                await asyncio.gather(*batch)

        asyncio.run(keep_asking(setting, server, row.tally, 0, during()))
        return finish(row, server)


def stopped_by(setting: Setting, name: str) -> Row:
    row = Row(f"SIG{name}", "16 requests in flight", f"SIG{name} while they are computed")
    with setting.serving() as server:

        async def scene() -> None:
            tasks = [
                asyncio.create_task(ask(server.port, request, row.tally))
                for request in setting.requests[:16]
            ]
            await asyncio.sleep(0.3)
            server.process.send_signal(getattr(signal, f"SIG{name}"))
            await asyncio.gather(*tasks)

        row.peak = server.peak_bytes()
        asyncio.run(scene())
        status = server.wait()
        row.expect(status == 0, f"exit status {status}")
    return row


def log_without_reader(setting: Setting) -> Row:
    row = Row("a log whose reader dies", "8 clients", "standard error's pipe closed once ready")
    with setting.serving("--log-level", "debug", unread_log=True) as server:
        server.close_log()
        asyncio.run(keep_asking(setting, server, row.tally, setting.seconds))
        return finish(row, server)


def log_unread(setting: Setting) -> Row:
    row = Row("a log that nobody reads", "8 clients, then SIGTERM", "standard error's pipe is full")
    with setting.serving("--log-level", "trace", unread_log=True) as server:
        nowhere = [Request("/nothing", b"{}")] * 1000
        asyncio.run(every_one(server, nowhere, row.tally))
        asyncio.run(keep_asking(setting, server, row.tally, setting.seconds))
        finish(row, server)
        status = server.stop()
        row.expect(status == 0, f"exit status {status}")
    return row


def log_full(setting: Setting) -> Row:
    row = Row("a log without room", "8 clients", "standard error is /dev/full from the start")
    with open("/dev/full", "w") as full, setting.serving(stderr=full) as server:
        asyncio.run(keep_asking(setting, server, row.tally, setting.seconds))
        return finish(row, server)


@contextmanager
def full_disk():
    """A folder on a file system with no room left, or one that can't be written at all."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
                check=False,
                capture_output=True,
            ).returncode
            == 0
        )
        try:
            try:
                with open(Path(folder, "filler"), "wb", buffering=0) as filler:
                    while mounted and filler.write(bytes(4096)):
                        pass
            except OSError:
                pass
            yield Path(folder)
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)


def disk_full(setting: Setting) -> Row:
    row = Row("a full disk", "8 clients", "cache and refusal recordings on a file system without room")
    with full_disk() as folder:
        how = {"environment": {"VECMILL_CACHE": str(folder)}}
        with setting.serving("--memory-recording-on-refusal", str(folder), **how) as server:
            asyncio.run(keep_asking(setting, server, row.tally, setting.seconds))
            return finish(row, server)


def container(setting: Setting) -> Row:
    limit = 700 * MIB
    row = Row(
        "a container of 700 MiB",
        "8 clients",
        "no budget given; texts of 1 MB to /tokenize, 8 at once",
        limit=limit,
    )
    # Without --memory-budget: what is planned must come from the container's limit.
    with serving(setting.vecmill, setting.model, "--device", "cpu", memory_limit=limit) as server:
        row.expect(server.cgroup is not None, "this machine lets nobody make control groups")
        dots = Request("/tokenize", json.dumps({"inputs": "." * 1_000_000}).encode())
        long = embeddings(["human rights " * 70_000])

        async def during() -> None:
            for _ in range(3):
                await asyncio.gather(
                    *(ask(server.port, dots, row.tally) for _ in range(8)),
                    *(ask(server.port, long, row.tally) for _ in range(8)),
                )

        asyncio.run(keep_asking(setting, server, row.tally, 0, during()))
        row.expect(server.is_alive(), "the server was killed")
        return finish(row, server)


def hostile_requests(setting: Setting) -> Row:
    deep = 100_000
    bodies = [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"input": "a"} more',
        b"\xff\xfe",
        b"[" * deep + b"]" * deep,
        b'{"a":' * deep + b"1" + b"}" * deep,
        b'{"model":"m","input":["a","\\ud800"]}',
        b'{"model":"m","input":[1e999]}',
        b'{"model":"m","input":[[4294967295]]}',
        b'{"model":"m","input":"' + b"a" * 1_900_000 + b'"}',
        json.dumps({"model": "m", "input": ["a"] * 2049}).encode(),
        json.dumps({"model": "m", "input": [[101] * 200_000]}).encode(),
    ]
    paths = ["/v1/embeddings", "/embed", "/tokenize", "/nothing", "/metrics", "/"]
    row = Row(
        "hostile requests",
        "8 clients",
        f"{len(bodies)} bodies to {len(paths)} routes, 10 times",
        limit=BUDGET + BESIDES_BUDGET,
    )
    with setting.serving() as server:

        async def during() -> None:
            hostile = [Request(path, body) for path in paths for body in bodies]
            await every_one(server, 10 * hostile, row.tally)

        asyncio.run(keep_asking(setting, server, row.tally, 0, during()))
        return finish(row, server)


def drained(setting: Setting) -> Row:
    row = Row("every device drained", "8 clients", "drained and restored four times")
    with setting.serving("--admin", "true") as server:

        async def during() -> None:
            for _ in range(4):
                await asyncio.to_thread(server.post, "/admin/devices/drain?device=cpu", {})
                status = (await asyncio.to_thread(server.get, "/ready"))[0]
                row.expect(status == 503, f"/ready said {status} with nothing that serves")
                await asyncio.sleep(0.5)
                await asyncio.to_thread(server.post, "/admin/devices/restore?device=cpu", {})
                await asyncio.sleep(0.5)

        asyncio.run(keep_asking(setting, server, row.tally, 0, during()))
        return finish(row, server)


def hostile_models(setting: Setting) -> Row:
    limit = 600 * MIB
    row = Row("hostile model files", "none", "", limit=limit)
    with tempfile.TemporaryDirectory() as folder:
        hostile = hostile_folders(Path(setting.model), Path(folder))
        long = json.dumps({"inputs": "human rights " * 2000}).encode()
        row.faults = f"{len(hostile)} folders, each started in a container of {limit // MIB} MiB"
        for name, model in hostile.items():
            with serving(setting.vecmill, model, memory_limit=limit, wait=False) as server:
                row.tally.sent += 1
                status = end_of_start(server)
                if status == 0:
                    asyncio.run(ask(server.port, Request("/embed", long), Tally()))
                    status = 0 if server.is_alive() else server.process.returncode
                row.peak = max(row.peak, server.peak_bytes())
                if status in (1, 2):
                    row.tally.refused += 1
                elif status is None:
                    row.tally.lose(f"{name}: still starting after 30 s")
                elif status == 0:
                    row.tally.answered += 1
                else:
                    row.tally.lose(f"{name}: exit status {status}")
    return row


def end_of_start(server: Server) -> int | None:
    """0 when it serves, its exit status when it refused, None when it does neither in time."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not server.is_alive():
            return server.process.returncode
        if server.get("/ready", 5.0)[0] == 200:
            return 0
        time.sleep(0.05)
    return None


SCENARIOS: dict[str, Callable[[Setting], Row]] = {
    "overload-2": lambda setting: overload(setting, 2),
    "overload-5": lambda setting: overload(setting, 5),
    "slow-readers": slow_readers,
    "slow-writers": slow_writers,
    "half-heads": half_heads,
    "vanishing": vanishing,
    "hup": lambda setting: stopped_by(setting, "HUP"),
    "term": lambda setting: stopped_by(setting, "TERM"),
    "int": lambda setting: stopped_by(setting, "INT"),
    "quit": lambda setting: stopped_by(setting, "QUIT"),
    "log-without-reader": log_without_reader,
    "log-unread": log_unread,
    "log-full": log_full,
    "disk-full": disk_full,
    "container": container,
    "hostile-requests": hostile_requests,
    "drained": drained,
    "hostile-models": hostile_models,
}
