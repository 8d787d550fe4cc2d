"""`vecmill serve` with one model under the loads that TEI was measured with, by `vecmill-bench load`.

    python scripts/bench/gpu_loads.py BENCH VECMILL target/gpu-models/minilm --out results.jsonl

The load with mixed lengths comes first and last, so that drift shows.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import vecmill

SHORT_TOKENS = 12


@dataclass(frozen=True)
class Load:
    name: str
    lengths: str
    connections: int
    texts: int


MIXED = Load("mixed", "mixed", 32, 64)
LOADS = (
    MIXED,
    Load("128 tokens", "128", 32, 64),
    Load("16 tokens", "16", 32, 64),
    Load("one text each", "mixed", 320, 1),
    Load("one short text", str(SHORT_TOKENS), 1, 1),
    MIXED,
)


def command(
    args: argparse.Namespace, load: Load, port: int, process: int, json_file: str
) -> list[str]:
    options = {
        "host": f"{vecmill.HOST}:{port}",
        "model": args.model,
        "name": f"{args.model.name}: {load.name}",
        "lengths": load.lengths,
        "connections": load.connections,
        "texts": load.texts,
        "warm-up": args.warm_up,
        "seconds": args.seconds,
        "server": process,
        "json": json_file,
    }
    return [
        str(args.bench),
        "load",
        *(word for k, v in options.items() for word in (f"--{k}", str(v))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path, help="the vecmill-bench binary")
    parser.add_argument("vecmill", type=Path, help="the vecmill binary")
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--flags", default="", help="of vecmill serve, in one string")
    parser.add_argument("--warm-up", type=float, default=1.5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--out", type=Path, required=True, help="file to append to, a line per load"
    )
    args = parser.parse_args()
    # Whoever stops this stops the server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    failures = 0
    flags = ["--model-id", str(args.model.resolve()), *shlex.split(args.flags)]
    with (
        vecmill.server(args.vecmill, *flags) as (process, port),
        tempfile.TemporaryDirectory() as folder,
    ):
        json_file = Path(folder, "load.json")
        for load in LOADS:
            failures += (
                subprocess.run(command(args, load, port, process.pid, str(json_file))).returncode
                != 0
            )
            if json_file.exists():
                figures = json.loads(json_file.read_text()) | {"server_flags": args.flags}
                with args.out.open("a") as out:
                    out.write(json.dumps(figures) + "\n")
                json_file.unlink()
    if failures:
        raise SystemExit(f"{failures} of {len(LOADS)} loads failed")


if __name__ == "__main__":
    main()
