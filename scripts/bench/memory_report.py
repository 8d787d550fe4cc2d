"""Makes a document of what memory_gpu.sh and memory_pressure.sh measured.

    python scripts/bench/memory_report.py target/bench-memory benchmarks/results/2026-11-24

Further runs may lie in the folder: `latency2.json` is shown beside `latency.json`, `pressure-150.json`
with its `.txt` and `.svg` after `pressure.json`. What is written by hand is kept there too: `latency.md`
and `pressure-150.md`, say, come below where that run is from, `notes.md` at the end.
"""

import argparse
import datetime
import json
import shutil
from pathlib import Path

import report

MODELS = {"minilm": "MiniLM: 384 wide, 6 layers", "bge-large": "bge-large: 1024 wide, 24 layers"}
MIB = 1 << 20


def load(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def time(nanoseconds: float) -> str:
    return f"{nanoseconds / 1000:.1f} µs" if nanoseconds >= 1000 else f"{nanoseconds:.0f} ns"


def nanoseconds(duration: dict) -> int:
    return duration["secs"] * 10**9 + duration["nanos"]


def replayed(folder: Path, model: str) -> list[dict]:
    """Everybody's figures for one day, under the same names."""
    rows = []
    for row in load(folder, f"replay-{model}")["figures"]:
        row["p50"], row["p99"] = nanoseconds(row["median"]), nanoseconds(row["p99"])
        row["note"] = f", first {row['batches']} batches" if row["batches"] < 10_000 else ""
        rows.append(row)
    for mode in ("", "--expandable"):
        row = load(folder, f"torch-{model}{mode}")
        row["peak_asked_bytes"] = row["peak_active_bytes"]
        row |= {"p50": row["median_nanoseconds"], "p99": row["p99_nanoseconds"], "note": ""}
        rows.append(row)
    return rows


def replay_table(rows: list[dict]) -> str:
    header = ["manager", "asked", "peak held MiB", "utilisation loss", "held / needed",
              "external frag., mean", "driver calls", "2nd half", "p50", "p99"]
    lines = [
        [
            row["manager"] + row["note"],
            f"per {row['asked_per']}",
            f"{row['peak_held_bytes'] / MIB:,.0f}",
            percent(row["utilisation_loss"]),
            f"{row['peak_held_bytes'] / row['peak_needed_bytes']:.3f}",
            percent(row["mean_external_fragmentation"]),
            f"{row['driver_calls']:,}",
            f"{row['warm_driver_calls']:,}" if "warm_driver_calls" in row else "",
            time(row["p50"]),
            time(row["p99"]),
        ]
        for row in rows
    ]
    return report.markdown(header, lines)


def plot(days: dict[str, list[dict]], path: Path) -> None:
    figure, axes = report.new_plot(11, 3.6, panels=2)
    for axis, (model, rows) in zip(axes, days.items()):
        names = [row["manager"] + (" (per batch)" if row["asked_per"] == "batch" else "") for row in rows]
        held = [row["peak_held_bytes"] / row["peak_needed_bytes"] for row in rows]
        colours = [report.COLOURS[0 if row["manager"] == "pool" else 1] for row in rows]
        axis.barh(names, held, color=colours)
        axis.axvline(1, color=report.INK, linewidth=1)
        axis.invert_yaxis()
        axis.set(title=MODELS[model], xlabel="peak held / what live tensors need")
    report.save_plot(figure, path)


def latency_table(runs: list[list[dict]]) -> str:
    """The first run in full, of the others the medians."""
    header = ["what", "threads", "p50", "p99", "p50 less the clock", *["in another run"] * (len(runs) - 1)]
    return report.markdown(
        header,
        [
            [row["what"], str(row["threads"]), time(row["p50_nanoseconds"]), time(row["p99_nanoseconds"]),
             *[time(same["p50_without_clock_nanoseconds"]) for same in (row, *others)]]
            for row, *others in zip(*runs, strict=True)
        ],
    )


def origin(result: dict) -> str:
    date = datetime.datetime.fromtimestamp(result["unix_seconds"], datetime.UTC)
    return f"`{result['command'].split(' --json')[0]}`, {date:%Y-%m-%d %H:%M} UTC, {result['device']}, {result['processor']}"


def runs(folder: Path, name: str) -> list[str]:
    return sorted(path.stem for path in folder.glob(f"{name}*.json"))


def by_hand(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.md"
    return [path.read_text()] if path.exists() else []


def pressure(folder: Path, name: str, out: str) -> list[str]:
    result = load(folder, name)
    seconds = result["command"].split("--seconds ")[1].split()[0]
    return [
        f"## Pressure for {seconds} s\n",
        f"{origin(result)}.\n",
        *by_hand(folder, name),
        "```\n" + (folder / f"{name}.txt").read_text().strip() + "\n```\n",
        f"![Memory over time]({Path(out).name}-memory-{name}.svg)\n",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="folder of the measurements")
    parser.add_argument("out", help="how the files to write begin: folder/date")
    args = parser.parse_args()
    days = {model: replayed(args.measured, model) for model in MODELS}
    latency = [load(args.measured, name) for name in runs(args.measured, "latency")]
    parts = [
        "# The memory pool beside other allocators\n",
        "`just bench-memory` makes these figures; each section names its own command.\n",
        f"## Lease and return\n\n{origin(latency[0])}.\n",
        *by_hand(args.measured, "latency"),
        "Each pair is timed by itself, so a sample contains one reading of the clock, that of lease + return two.\n",
        latency_table([run["figures"] for run in latency]),
    ]
    for model, rows in days.items():
        parts += [
            f"## One day's traffic, {MODELS[model]}\n",
            f"{origin(load(args.measured, f'replay-{model}'))}; PyTorch {rows[-1]['torch']}.\n",
            "10,000 batches of lognormal lengths in bursts, three in flight, formed by vecmill's queue; time is simulated, memory is real. "
            "`needed` is what live tensors take at their peak, the same for everybody; the pool asks once per batch, for the plan's peak. "
            "External fragmentation is of what is held and idle, at addresses as they are mapped; the driver's own pool does not say how its free memory lies (0 is the best case), and cuMemAlloc holds nothing idle. "
            "Times are of the calls alone, in the recording's order from one thread; PyTorch's are of Python's calls.\n",
            replay_table(rows),
        ]
    parts.append(f"![Peak held per manager]({Path(args.out).name}-memory-pool.svg)\n")
    for name in runs(args.measured, "pressure"):
        parts += pressure(args.measured, name, args.out)
    parts += by_hand(args.measured, "notes")
    Path(f"{args.out}-memory-pool.md").write_text("\n".join(parts))
    plot(days, Path(f"{args.out}-memory-pool.svg"))
    shutil.copy(args.measured / "replay-bge-large.svg", f"{args.out}-memory-pool-bge-large.svg")
    for name in runs(args.measured, "pressure"):
        shutil.copy(args.measured / f"{name}.svg", f"{args.out}-memory-{name}.svg")
    everything = {path.stem: json.loads(path.read_text()) for path in sorted(args.measured.glob("*.json"))}
    everything |= {path.name: path.read_text() for end in ("md", "txt") for path in sorted(args.measured.glob(f"*.{end}"))}
    Path(f"{args.out}-memory-pool.json").write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
