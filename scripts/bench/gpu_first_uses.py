"""Servers' first loads when nothing that they have not used lies in the page cache, and the memory
that they take of the GPU:

    python scripts/bench/gpu_first_uses.py BENCH target/gpu-models/bge-large --out results.jsonl \
        --server old=path/to/vecmill --server new=other/vecmill

Each server is started --rounds times, in turns, with no compiled kernels from before. Once it is
ready, its memory is read. Then come bulk work and 320 connections with one text each, before either
of which the page cache is dropped (which needs root; without, say --warm). The longest request shows
what was made ready only then: kernels that were compiled are counted, those that were read from disk
are not.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

import vecmill

CACHES = Path("/proc/sys/vm/drop_caches")
METRICS = ("memory_reserved_bytes", "memory_held_bytes", "memory_driver_bytes")
FIRST_USES = "first_uses_after_start_total"
# Connections, and texts of a request.
LOADS = {"bulk": (32, 64), "one text each": (320, 1)}


def used_mib() -> int:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def metrics(port: int) -> dict[str, float]:
    """Of the first device; what a server doesn't tell is left out."""
    connection = HTTPConnection(vecmill.HOST, port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    found = {}
    for name in (*METRICS, FIRST_USES):
        lines = [line for line in text.splitlines() if line.startswith(f"vecmill_{name}{{")]
        if lines:
            found[name] = float(lines[0].rsplit(" ", 1)[1])
    return found


def files(folder: Path) -> int:
    return sum(1 for file in folder.rglob("*") if file.is_file())


def load(args: argparse.Namespace, port: int, name: str) -> dict:
    if not args.warm:
        subprocess.run(["sync"], check=True)
        CACHES.write_text("3\n")
    connections, texts = LOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "load.json")
        command = [str(args.bench), "load", "--host", f"{vecmill.HOST}:{port}"]
        command += ["--connections", str(connections), "--texts", str(texts), "--name", name]
        command += ["--model", str(args.model), "--warm-up", "0", "--seconds", str(args.seconds)]
        # It fails when a request did, and writes its figures all the same.
        subprocess.run([*command, "--json", str(figures)], stdout=subprocess.DEVNULL)
        return json.loads(figures.read_text())["figures"]


def run(args: argparse.Namespace, name: str, binary: Path, number: int, cache: Path) -> None:
    before = used_mib()
    os.environ["VECMILL_CACHE"] = str(cache)
    begun = time.monotonic()
    flags = ["--model-id", str(args.model.resolve()), *args.flags.split()]
    with vecmill.server(binary, *flags) as (_, port):
        ready = time.monotonic() - begun
        at_start, compiled = metrics(port), files(cache / "kernels")
        taken = used_mib() - before
        loads = {which: load(args, port, which) for which in LOADS}
        end, later = metrics(port), files(cache / "kernels") - compiled
    line = {"name": name, "round": number, "taken_mib": taken, "start": at_start, "end": end}
    line |= {"ready_seconds": ready, "kernels": compiled, "kernels_later": later}
    keys = ("embeddings_per_second", "p50_ms", "p99_ms", "max_ms", "errors")
    line["loads"] = {which: {key: one[key] for key in keys} for which, one in loads.items()}
    with args.out.open("a") as out:
        out.write(json.dumps(line) + "\n")
    mib = {key: round(value / 2**20) for key, value in at_start.items() if key in METRICS}
    print(f"{name} {number}: ready in {ready:.1f} s, {taken} MiB taken, {mib}")
    print(f"    {compiled} files of kernels and {later} later; first uses {end.get(FIRST_USES)}")
    for which, one in line["loads"].items():
        figures = ", ".join(f"{key} {value:.1f}" for key, value in one.items())
        print(f"    {which}: {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path, help="the vecmill-bench binary")
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument(
        "--server", action="append", required=True, help="name=path of a vecmill binary"
    )
    parser.add_argument("--flags", default="", help="of vecmill serve, in one string")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm", action="store_true", help="leave the page cache as it is")
    parser.add_argument("--out", type=Path, required=True, help="file to append to")
    args = parser.parse_args()
    for number in range(1, args.rounds + 1):
        for server in args.server:
            name, binary = server.split("=", 1)
            with tempfile.TemporaryDirectory() as cache:
                run(args, name, Path(binary), number, Path(cache))


if __name__ == "__main__":
    main()
