"""The tensors of a simulated day through PyTorch's caching allocator, on a GPU.

    vecmill-bench record --model minilm --out day
    python scripts/bench/torch_allocator.py day/tensors.csv --json torch.json
    python scripts/bench/torch_allocator.py day/tensors.csv --expandable --json torch-expandable.json

Each tensor is made with `torch.empty` on its batch's stream and dropped when the recording says so. What
is held and how it lies comes from the allocator's own statistics and snapshots.
"""

import argparse
import csv
import json
import os
import sys
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", help="tensors.csv of vecmill-bench record")
    parser.add_argument("--expandable", action="store_true", help="with expandable segments")
    parser.add_argument("--snapshots", type=int, default=400, help="looks at how free memory lies")
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_args()


def read(path):
    """Events as (id, stream, bytes), bytes 0 for a return."""
    with open(path, newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            yield int(row["id"]), int(row["stream"] or 0), int(row["bytes"] or 0)


def external_fragmentation(torch):
    """1 - largest free block / all free bytes; 0 when nothing is free."""
    free = [
        block["size"]
        for segment in torch.cuda.memory_snapshot()
        for block in segment["blocks"]
        if block["state"] == "inactive"
    ]
    return 1 - max(free) / sum(free) if free else 0.0


def replay(torch, events, looks):
    streams, live, pairs, fragmentation = {}, {}, [], []
    every = max(1, len(events) // looks)
    needed = peak_needed = 0
    for index, (name, number, size) in enumerate(events):
        if size:
            stream = streams.get(number)
            if stream is None:
                stream = streams[number] = torch.cuda.Stream()
            needed += size
            peak_needed = max(peak_needed, needed)
            started = time.perf_counter_ns()
            with torch.cuda.stream(stream):
                tensor = torch.empty(size, dtype=torch.uint8, device="cuda")
            took = time.perf_counter_ns() - started
            live[name] = (tensor, size, took)
            del tensor
        else:
            tensor, size, took = live.pop(name)
            needed -= size
            started = time.perf_counter_ns()
            del tensor
            pairs.append(took + time.perf_counter_ns() - started)
        if index % every == 0:
            fragmentation.append(external_fragmentation(torch))
    pairs.sort()
    return peak_needed, pairs, fragmentation


def main():
    options = arguments()
    if options.expandable:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = os.environ["PYTORCH_ALLOC_CONF"] = (
            "expandable_segments:True"
        )
    import torch

    events = list(read(options.recording))
    needed, pairs, fragmentation = replay(torch, events, options.snapshots)
    statistics = torch.cuda.memory_stats()
    held = statistics["reserved_bytes.all.peak"]
    asked = statistics["active_bytes.all.peak"]
    figures = {
        "manager": "PyTorch, expandable segments" if options.expandable else "PyTorch",
        "asked_per": "tensor",
        "leases": len(pairs),
        "peak_needed_bytes": needed,
        "peak_active_bytes": asked,
        "peak_held_bytes": held,
        "utilisation_loss": 1 - asked / held,
        "loss_to_need": 1 - needed / held,
        "mean_external_fragmentation": sum(fragmentation) / len(fragmentation),
        "max_external_fragmentation": max(fragmentation),
        "driver_calls": statistics.get("num_device_alloc", 0) + statistics.get("num_device_free", 0),
        "median_nanoseconds": pairs[len(pairs) // 2],
        "p99_nanoseconds": pairs[len(pairs) * 99 // 100],
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "command": " ".join(["torch_allocator.py", *sys.argv[1:]]),
        "unix_seconds": int(time.time()),
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
