"""What texts of a megabyte make the server hold: `/tokenize` and `/embed`, once and four at once.

    python tokenize_memory.py BINARY [BINARY …] [--model-id ID] [--out FILE]

Each case runs on a server of its own. Standard library only, but for `vecmill.py`'s numpy."""

import argparse
import datetime
import json
import os
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path

import vecmill

BYTES = 1_000_000
AT_ONCE = (1, 4)
WORD = "слово и дело "
TEXTS = {
    "dots": "." * BYTES,
    "English": "The quick brown fox jumps over the lazy dog. " * (BYTES // 45),
    "Russian": WORD * (BYTES // len(WORD.encode())),
    "Chinese": "人人生而自由，在尊严和权利上一律平等。" * (BYTES // 57),
    "one word": "é" * (BYTES // 2),
}
ROUTES = ("/tokenize", "/embed")


def memory(pid: int) -> dict[str, float]:
    """Megabytes resident now, and the most ever."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[field].split()[0]) / 1000 for field, name in (("VmRSS", "now"), ("VmHWM", "most"))}


def send(port: int, route: str, body: bytes, statuses: list[int], sizes: list[int]) -> None:
    connection = HTTPConnection(vecmill.HOST, port, timeout=600)
    connection.request("POST", route, body, {"content-type": "application/json"})
    response = connection.getresponse()
    statuses.append(response.status)
    size = 0
    while part := response.read(1 << 16):
        size += len(part)
    sizes.append(size)


def measure(binary: Path, flags: list[str], route: str, text: str, at_once: int) -> dict:
    body = json.dumps({"inputs": TEXTS[text]}, ensure_ascii=False).encode()
    with vecmill.server(binary, *flags) as (process, port):
        send(port, "/embed", b'{"inputs":"a quick brown fox"}', [], [])
        before = memory(process.pid)
        statuses, sizes = [], []
        threads = [
            threading.Thread(target=send, args=(port, route, body, statuses, sizes))
            for _ in range(at_once)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = memory(process.pid)
    return {
        "binary": str(binary),
        "route": route,
        "text": text,
        "at_once": at_once,
        "statuses": sorted(statuses),
        "reply_mb": max(sizes) / 1e6,
        "before_mb": before["now"],
        "peak_mb": after["most"],
        "after_mb": after["now"],
        "bytes_per_byte": (after["most"] - before["most"]) * 1e6 / (len(body) * at_once),
    }


def row(case: dict) -> str:
    cells = [
        Path(case["binary"]).name,
        case["route"],
        case["text"],
        case["at_once"],
        " ".join(map(str, case["statuses"])),
        f"{case['reply_mb']:.1f}",
        f"{case['before_mb']:.0f}",
        f"{case['peak_mb']:.0f}",
        f"{case['after_mb']:.0f}",
        f"{case['bytes_per_byte']:.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binaries", type=Path, nargs="+")
    parser.add_argument("--model-id")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    flags = ["--model-id", args.model_id] if args.model_id else []
    cpu = next(line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    head = [
        f"`{' '.join(['python', os.path.relpath(sys.argv[0]), *sys.argv[1:]])}`, "
        f"{datetime.datetime.now(datetime.UTC).date()}, {cpu}, {os.cpu_count()} processors.",
        "",
        "| program | route | text | at once | status | reply MB | MB before | MB at peak | MB after | bytes per byte |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(head), flush=True)
    rows = []
    for route in ROUTES:
        for text in TEXTS:
            for at_once in AT_ONCE:
                for binary in args.binaries:
                    rows.append(row(measure(binary, flags, route, text, at_once)))
                    print(rows[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(head + rows) + "\n")


if __name__ == "__main__":
    main()
