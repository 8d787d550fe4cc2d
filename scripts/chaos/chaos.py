"""Does harm to a vecmill server, on this machine only, and counts what that lost.

    python3 scripts/chaos/chaos.py --vecmill target/release/vecmill --model FOLDER

Prints one line for each scenario: what was asked, what went wrong meanwhile, how many requests were
sent, accepted, answered and lost, and the most memory that the server had beside what it may have.
Fails when a request was lost, memory went beyond its limit or a promise was broken otherwise.
Standard library only; some scenarios want to be root, for a control group or a small file system.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from datetime import date
from pathlib import Path

from scenarios import SCENARIOS, Row, Setting
from server import MIB

HEAD = [
    "scenario",
    "load held",
    "faults",
    "sent",
    "accepted",
    "answered",
    "refused",
    "lost",
    "peak MiB",
    "limit MiB",
    "verdict",
]


def cells(row: Row) -> list[str]:
    tally = row.tally
    limit = "" if row.limit is None else f"{row.limit / MIB:.0f}"
    return [
        row.scenario,
        row.load,
        row.faults,
        f"{tally.sent:,}",
        f"{tally.accepted:,}",
        f"{tally.answered:,}",
        f"{tally.refused:,}",
        f"{tally.lost:,}",
        f"{row.peak / MIB:.0f}",
        limit,
        "good" if row.is_good else "BAD",
    ]


def complaints(row: Row) -> list[str]:
    lost = [f"{count} × {reason}" for reason, count in row.tally.reasons.items()]
    over = row.limit is not None and row.peak > row.limit
    return [*row.wrong, *lost, *(["memory beyond its limit"] if over else [])]


def markdown(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    for row in rows:
        lines += [f"- {row.scenario}: {complaint}" for complaint in complaints(row)]
    return "\n".join(lines)


def run(setting: Setting, names: list[str]) -> list[Row]:
    rows = []
    for name in names:
        began = time.monotonic()
        try:
            row = SCENARIOS[name](setting)
        except (OSError, ValueError, SystemExit) as error:
            traceback.print_exc()
            row = Row(name, "", "", wrong=[f"the scenario ended early: {error}"])
        rows.append(row)
        took = time.monotonic() - began
        print(f"{took:6.1f} s  {' · '.join(cells(row))}", flush=True)
        for complaint in complaints(row):
            print(f"          {complaint}", flush=True)
    return rows


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    model = next(line.split(": ")[1] for line in info.splitlines() if line.startswith("model name"))
    return f"{model}, {len(os.sched_getaffinity(0))} processors, Linux {platform.release()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vecmill", type=Path, required=True, help="the program")
    parser.add_argument("--model", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long a load is held")
    parser.add_argument("--only", default="", help="scenarios, with commas between")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name] or list(SCENARIOS)
    setting = Setting(arguments.vecmill.resolve(), arguments.model, arguments.seconds)
    setting.prepare()
    print(
        f"capacity: {setting.rate:.1f} requests/s of 4 texts, 8 clients in a closed loop",
        flush=True,
    )
    rows = run(setting, names)
    if arguments.markdown:
        command = "python3 scripts/chaos/chaos.py --vecmill target/release/vecmill --model FOLDER"
        head = f"{date.today()}, {machine()}\n\n`{command}`\n\nCapacity: {setting.rate:.1f} requests of 4 texts a second.\n\n"
        arguments.markdown.write_text(head + markdown(rows) + "\n")
    if arguments.json:
        made = [dict(zip(HEAD, cells(row))) | {"complaints": complaints(row)} for row in rows]
        arguments.json.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    bad = [row.scenario for row in rows if not row.is_good]
    print(
        f"{len(rows) - len(bad)} of {len(rows)} good" + (f"; bad: {', '.join(bad)}" if bad else "")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
