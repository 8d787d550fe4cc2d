"""Makes a document of what gpu_encoder.sh and gpu_accuracy.py measured.

    python scripts/bench/gpu_report.py target/bench-gpu benchmarks/results/2026-11-25

writes …-gpu-encoder.md, .json and .svg.
"""

import argparse
import csv
import json
import statistics
from pathlib import Path

import report

MODELS = {
    "minilm": "all-MiniLM-L6 shape",
    "bge-base": "bge-base shape",
    "bge-large": "bge-large shape",
}
EAGER, BEST = "PyTorch eager, SDPA", "PyTorch best"
LENGTHS = ("16", "128", "512", "mixed")
# What was asked for before anything was built: least, and goal.
ASKED_EAGER = {"minilm": (1.7, 2.2), "bge-base": (1.35, 1.5), "bge-large": (1.3, 1.4)}
ASKED_PRODUCTS = {"minilm": (0.7, 1.0), "bge-base": (0.75, None), "bge-large": (0.85, None)}
ASKED_LATENCY_MS = {"minilm": 0.25, "bge-large": 1.0}
ASKED_TEI = {("minilm", "mixed"): 2.0, ("bge-large", "mixed"): 1.3}
ASKED_SENTENCE_TRANSFORMERS = 2.5
# TEI 1.9.3 on an H200 with 16 cores, the same loads, measured on another day: embeddings/s.
TEI = {
    "minilm": {"mixed": 40_100, "128 tokens": 34_200, "16 tokens": 44_800, "one text each": 21_200},
    "bge-base": {
        "mixed": 24_200,
        "128 tokens": 15_700,
        "16 tokens": 37_900,
        "one text each": 17_500,
    },
    "bge-large": {"mixed": 10_500, "128 tokens": 6100, "16 tokens": 23_700, "one text each": 9000},
}


class Results:
    """All lines of results.jsonl, by what they measured."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "results.jsonl").read_text().splitlines()
        self.all = [json.loads(line) for line in lines]

    def of(self, what: str) -> list[dict]:
        return [line for line in self.all if line["figures"]["what"] == what]

    def encode(self, model: str, dtype: str = "float16") -> list[dict]:
        mine = [line["figures"] for line in self.of("encode")]
        return [f for f in mine if f["model"] == model and f["dtype"] == dtype]

    def peers(self, model: str) -> dict | None:
        mine = [line["figures"] for line in self.of("peers")]
        return next((f for f in mine if f["model"] == model), None)

    def loads(self, model: str) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for line in self.of("load"):
            owner, name = line["figures"]["name"].split(": ", 1)
            if owner == model:
                found.setdefault(name, []).append(line["figures"])
        return found

    def models(self) -> dict[str, str]:
        """Names and titles of those that were measured."""
        names = {
            f["name"].split(": ")[0] if f["what"] == "load" else f.get("model")
            for f in self.figures()
        }
        return {name: title for name, title in MODELS.items() if name in names}

    def figures(self) -> list[dict]:
        return [line["figures"] for line in self.all]

    def dtypes(self) -> list[str]:
        return sorted({line["figures"]["dtype"] for line in self.of("encode")})


def windows(turns: list[dict], lengths: str) -> list[float]:
    """vecmill's tokens per second in all windows of all turns."""
    rows = [row for turn in turns for row in turn["throughput"] if row["lengths"] == lengths]
    return [rate for row in rows for rate in row["windows"]]


def peer(peers: dict | None, name: str, lengths: str) -> dict | None:
    rows = peers.get("throughput", []) if peers else []
    return next((r for r in rows if r["peer"] == name and r["lengths"] == lengths), None)


def products_floor(peers: dict | None) -> float | None:
    """Tokens per second of the matrix products alone, in batches as large as everybody's."""
    products = (peers or {}).get("products")
    return products[0]["tokens_per_second"] if products else None


def rate(value: float | None) -> str:
    return f"{value / 1e6:.2f}" if value else ""


def with_range(values: list[float]) -> str:
    if not values:
        return ""
    return f"{rate(statistics.median(values))} ({rate(min(values))}–{rate(max(values))})"


def against(ours: float | None, theirs: float | None, asked: tuple | None = None) -> str:
    """A ratio, and what was asked of it."""
    if not ours or not theirs:
        return ""
    if not asked:
        return f"{ours / theirs:.2f}"
    least, goal = asked
    goal = f", goal {goal}" if goal else ""
    verdict = "" if ours / theirs >= least else ", **missed**"
    return f"{ours / theirs:.2f} (asked {least}{goal}{verdict})"


def throughput_table(results: Results, dtype: str) -> str:
    rows = []
    for model, title in results.models().items():
        peers, turns = results.peers(model), results.encode(model, dtype)
        floor = products_floor(peers)
        for lengths in LENGTHS:
            ours = windows(turns, lengths)
            eager, best = (peer(peers, name, lengths) for name in (EAGER, BEST))
            asked = lengths == "128" and dtype == "float16"
            median = statistics.median(ours) if ours else None
            rows.append([
                title, lengths, with_range(ours),
                with_range(eager["windows"]) if eager else "",
                with_range(best["windows"]) if best else "",
                against(median, eager and eager["tokens_per_second"], ASKED_EAGER[model] if asked else None),
                against(median, best and best["tokens_per_second"]),
                against(median, floor, ASKED_PRODUCTS[model] if asked else None),
            ])  # fmt: skip
    header = ["model", "tokens per text", "vecmill, Mtok/s", "PyTorch eager", "PyTorch best",
              "× eager", "× best", "share of the products' floor"]  # fmt: skip
    return report.markdown(header, rows)


def best_table(results: Results) -> str:
    rows = []
    for model, title in results.models().items():
        for row in (results.peers(model) or {}).get("throughput", []):
            if row["peer"] == BEST:
                looks = "; ".join(f"{k} {rate(v)}" for k, v in row["looked_at"].items())
                rows.append([title, row["lengths"], row["how"], looks])
    return report.markdown(["model", "tokens per text", "chosen", "short looks, Mtok/s"], rows)


def products_table(results: Results) -> str:
    rows = []
    for model, title in results.models().items():
        for row in (results.peers(model) or {}).get("products", []):
            rows.append(
                [
                    title,
                    f"{row['tokens']:,}",
                    with_range(row["windows"]),
                    f"{row['tflop_per_second']:.0f}",
                ]
            )
    return report.markdown(["model", "tokens", "Mtok/s", "TFLOP/s"], rows)


def latency_table(results: Results) -> str:
    rows = []
    for model, title in results.models().items():
        for turn in results.encode(model):
            mine = turn["latency"]
            asked = ASKED_LATENCY_MS.get(model)
            note = (
                f" (asked {asked}{'' if mine['p50_ms'] <= asked else ', **missed**'})"
                if asked
                else ""
            )
            rows.append(
                [
                    title,
                    f"vecmill, {turn['name']}",
                    f"{mine['p50_ms']:.3f}{note}",
                    f"{mine['p99_ms']:.3f}",
                ]
            )
        for row in (results.peers(model) or {}).get("latency", []):
            rows.append([title, row["peer"], f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}"])
    return report.markdown(["model", "one text of 12 tokens", "p50 ms", "p99 ms"], rows)


def loads_table(results: Results) -> str:
    rows = []
    for model, title in results.models().items():
        for name, turns in results.loads(model).items():
            rates = [turn["embeddings_per_second"] for turn in turns]
            tei, asked = TEI[model].get(name), ASKED_TEI.get((model, name))
            middle = turns[len(turns) // 2]
            rows.append([
                title, name, " and ".join(f"{r:,.0f}" for r in rates),
                rate(statistics.mean(turn["tokens_per_second"] for turn in turns)),
                f"{tei:,}" if tei else "",
                against(statistics.mean(rates), tei, (asked, None) if asked else None),
                f"{middle['p50_ms']:.2f} / {middle['p99_ms']:.2f}",
                f"{middle['server_cores'] or 0:.1f} / {middle['generator_cores'] or 0:.1f}",
                str(sum(turn["errors"] for turn in turns)),
            ])  # fmt: skip
    header = ["model", "load", "embeddings/s", "Mtok/s", "TEI embeddings/s", "× TEI", "p50 / p99 ms",
              "cores: server / generator", "errors"]  # fmt: skip
    return report.markdown(header, rows)


def stages_table(results: Results) -> str:
    rows = []
    for model, title in results.models().items():
        for stage in results.loads(model).get("mixed", [{"stages": []}])[0]["stages"]:
            if "/metrics" in stage["what"]:
                continue
            rows.append(
                [
                    title,
                    f"`{stage['what']}`",
                    f"{stage['count']:,.0f}",
                    f"{stage['mean']:.6g}",
                    f"{stage['per_second']:,.4g}",
                ]
            )
    return report.markdown(["model", "histogram", "count", "mean", "sum per second"], rows)


def sentence_transformers_table(results: Results) -> str:
    rows = []
    for model, title in results.models().items():
        theirs = (results.peers(model) or {}).get("sentence_transformers")
        if not theirs:
            continue
        mixed = [turn["embeddings_per_second"] for turn in results.loads(model).get("mixed", [])]
        alone = windows(results.encode(model), "mixed")
        mean_tokens = theirs["tokens"] / theirs["texts"]
        for row in theirs["rows"]:
            tokenised = row["includes_tokenising"]
            if tokenised:
                ours = statistics.mean(mixed) if mixed else None
            else:
                ours = statistics.median(alone) / mean_tokens if alone else None
            asked = (ASKED_SENTENCE_TRANSFORMERS, None) if tokenised else None
            rows.append([
                title, "included" if tokenised else "excluded", str(row["batch"]),
                f"{row['embeddings_per_second']:,.0f}", f"{ours:,.0f}" if ours else "",
                against(ours, row["embeddings_per_second"], asked),
            ])  # fmt: skip
    header = [
        "model",
        "tokenising",
        "batch size",
        "embeddings/s",
        "vecmill: over HTTP, or the encoder alone",
        "×",
    ]
    return report.markdown(header, rows)


def accuracy_table(results: Results) -> str:
    rows = []
    for line in results.of("accuracy"):
        f = line["figures"]
        compared = (
            "golden",
            "transformers_with_the_same_weights",
            "alone_and_in_company",
            "repeated",
        )
        cells = [f"{f[name]['lowest']:.7f} / {f[name]['mean']:.7f}" for name in compared]
        same = [f"{100 * f[name]['bit_for_bit']:.0f} %" for name in compared[2:]]
        odd = ", ".join(f"{name}: {outcome}" for name, outcome in f["odd"].items())
        rows.append([f"`{f['server_flags']}`", *cells, " / ".join(same), odd])
    header = ["server", "golden vectors, lowest / mean", "same weights in fp32", "alone and in company",
              "repeated", "same bits: in company / repeated", "odd texts"]  # fmt: skip
    return report.markdown(header, rows)


def memory_lines(results: Results) -> list[str]:
    lines = []
    for model, title in results.models().items():
        for turn in results.encode(model):
            for row in turn["throughput"]:
                m = row["memory"]
                lines.append([
                    title, turn["name"], row["lengths"], str(m["driver_calls"]),
                    f"{m['planned_bytes'] / 2**20:,.0f}", f"{m['peak_held_bytes'] / 2**20:,.0f}",
                ])  # fmt: skip
    header = [
        "model",
        "turn",
        "tokens per text",
        "driver calls while measured",
        "a batch's plan, MiB",
        "most held so far, MiB",
    ]
    return report.markdown(header, lines)


def column(row: dict, name: str) -> str:
    """The value whose column's name begins so: units follow."""
    return next(
        (value for key, value in row.items() if key and value and key.startswith(name)), "0"
    )


def clocks(folder: Path) -> str:
    """The card's name and driver, and its clock while it was busy."""
    with (folder / "clocks.csv").open(newline="") as file:
        lines = list(csv.DictReader(file, skipinitialspace=True))
    busy = [row for row in lines if column(row, "utilization.gpu")[0] in "123456789"]
    if not busy:
        return "The card's clocks were not recorded."
    sm = [float(column(row, "clocks.current.sm").split()[0]) for row in busy]
    power = max(float(column(row, "power.draw").split()[0]) for row in busy)
    return (
        f"{column(busy[0], 'name')}, driver {column(busy[0], 'driver_version')}; SM clock while busy: "
        f"median {statistics.median(sm):.0f} MHz ({min(sm):.0f}–{max(sm):.0f}), power up to {power:.0f} W, "
        "sampled twice a second over the whole run."
    )


def plot(results: Results, path: Path) -> None:
    figure, axes = report.new_plot(11, 3.4, panels=max(1, len(results.models())))
    for axis, (model, title) in zip(axes, results.models().items(), strict=False):
        peers = results.peers(model)
        series = {
            "PyTorch eager": [
                (peer(peers, EAGER, n) or {}).get("tokens_per_second", 0) for n in LENGTHS
            ],
            "PyTorch best": [
                (peer(peers, BEST, n) or {}).get("tokens_per_second", 0) for n in LENGTHS
            ],
            "vecmill": [
                statistics.median(windows(results.encode(model), n) or [0]) for n in LENGTHS
            ],
        }
        colours = (report.COLOURS[2], report.COLOURS[1], report.COLOURS[0])
        for i, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=True)):
            places = [n + 0.27 * (i - 1) for n in range(len(LENGTHS))]
            axis.bar(places, [v / 1e6 for v in values], 0.25, label=name, color=colour)
        if peers:
            floor = peers["products"][0]["tokens_per_second"] / 1e6
            axis.axhline(
                floor, color=report.INK, linewidth=1, linestyle=":", label="products alone"
            )
        axis.set_xticks(range(len(LENGTHS)), LENGTHS)
        axis.set(title=title, xlabel="tokens per text", ylabel="Mtok/s")
    axes[0].legend(frameon=False, fontsize=8)
    report.save_plot(figure, path)


def document(results: Results, folder: Path, name: str) -> str:
    peers = results.of("peers")
    versions = ", ".join(f"{k} {v}" for k, v in peers[0]["versions"].items()) if peers else ""
    date = peers[0]["date"] if peers else ""
    parts = [
        "# The encoder on a GPU beside its peers\n",
        f"`scripts/bench/gpu_encoder.sh` and `gpu_accuracy.py`, {date}. {clocks(folder)} {versions}.\n",
        "Random weights of the real configurations, f16, mean pooling. Batches of at most 32,768 tokens, two in flight, four different ones in turn, the host's clock from one batch's end to another's. vecmill: from tokens on the host to f32 vectors on the host; its peers: from ids on the device to f16 vectors in pinned host memory, which is in their favour. Each figure: after a warm-up, five windows of 0.4 s per turn; vecmill's turns are before and after its peers' two. Medians over all windows, with the slowest and the fastest.\n",
    ]
    for dtype in results.dtypes():
        parts += [f"## Throughput, {dtype}\n", throughput_table(results, dtype)]
    parts += [
        f"![Tokens per second]({name}.svg)\n",
        "The floor is the time of a batch's matrix products alone, by cuBLASLt as PyTorch calls it, in a CUDA graph, at 32,768 tokens:\n",
        products_table(results),
        "PyTorch eager is transformers' BertModel with SDPA and, as lengths are equal, without a mask. PyTorch best: padding removed, queries, keys and values in one product, compiled between the attentions, in one CUDA graph; the fastest of these:\n",
        best_table(results),
        "## One short text\n", latency_table(results),
        "## sentence-transformers on mixed lengths\n", sentence_transformers_table(results),
        "## Over HTTP\n",
        "`vecmill serve` and the load generator on the same 16 cores, `/v1/embeddings`, base64. TEI 1.9.3 was measured on an H200 with 16 cores under the same loads, not in this run.\n",
        loads_table(results),
        "Where the time goes under the mixed load (durations in seconds; a duration's sum per second is how many were at it at once):\n",
        stages_table(results),
        "## Memory\n", memory_lines(results),
        "## Accuracy, all-MiniLM-L6-v2\n", accuracy_table(results),
    ]  # fmt: skip
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="folder of the measurements")
    parser.add_argument("out", help="how the files to write begin: folder/date")
    args = parser.parse_args()
    results = Results(args.measured)
    stem = f"{args.out}-gpu-encoder"
    Path(f"{stem}.md").write_text(document(results, args.measured, Path(stem).name))
    Path(f"{stem}.json").write_text(json.dumps(results.all, indent=1) + "\n")
    plot(results, Path(f"{stem}.svg"))


if __name__ == "__main__":
    main()
