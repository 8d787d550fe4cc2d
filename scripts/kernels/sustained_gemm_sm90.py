"""Linear layers on a Hopper GPU under load that lasts, where power and not the clock is the limit.

    python3 scripts/kernels/sustained_gemm_sm90.py [model ...]

Short looks (check_gemm_sm90.py) run at the highest clock; a server that is busy doesn't. Here each
candidate runs for half a second at a time, in turns from the first to the last and back, and the
card's power and clock are read meanwhile. A line for each: TFLOP/s, watts, MHz, pJ per operation.
"""

import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import gemm_sm90 as gemm
import torch
from check_gemm_sm90 import MODELS, Rotation

TOKENS = 32_768
SECONDS, SETTLING_SECONDS = 0.5, 0.25
ROUNDS = 2
NAMES = sys.argv[2].split(",") if len(sys.argv) > 2 else [
    "pp128x192", "pp128x192c2x1", "pp128x192c1x2", "pp64x256c2x1", "co128x256", "co128x256c2x1",
    "co128x256c1x2", "co256x128c2x1", "co256x128c1x2", "co256x192", "co256x192c2x1"]


class Meter:
    """Watts and MHz now, read by nvidia-smi all along."""

    def __init__(self):
        command = ["nvidia-smi", "--query-gpu=power.draw.instant,clocks.sm",
                   "--format=csv,noheader,nounits", "-lms", "20"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.readings = []
        ThreadPoolExecutor(1).submit(self.read)

    def read(self):
        for line in self.process.stdout:
            try:
                watts, mhz = (float(field) for field in line.split(","))
            except ValueError:
                continue
            self.readings.append((time.perf_counter(), watts, mhz))

    def between(self, start, end):
        taken = [(w, m) for t, w, m in self.readings if start <= t <= end]
        if not taken:
            return float("nan"), float("nan")
        return tuple(statistics.mean(column) for column in zip(*taken))


def graph_of(launch, sets):
    launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(sets * 4):
            launch(i % sets)
    return graph, sets * 4


def sustained(graph, launches, meter):
    """Seconds of one launch, and power and clock meanwhile."""
    def run(seconds):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(4):
                graph.replay()
            torch.cuda.synchronize()
            count += 4
        return count, start, time.perf_counter()

    run(SETTLING_SECONDS)
    count, start, end = run(SECONDS)
    return (end - start) / (count * launches), *meter.between(start, end)


def main(models):
    torch.zeros(1, device="cuda")
    names = [n for n in NAMES if n in gemm.CONFIGS]
    epilogues = ("IDENTITY", "GELU")
    wanted = [(n, e) for n in names for e in epilogues]
    with ThreadPoolExecutor(16) as pool:
        cubins = list(pool.map(lambda one: gemm.compile_cubin(gemm.CONFIGS[one[0]], one[1])[0], wanted))
    kernels = {one: gemm.Kernel(gemm.CONFIGS[one[0]], code) for one, code in zip(wanted, cubins)}
    meter = Meter()
    f = torch.nn.functional
    for model in models or MODELS:
        hidden, up = MODELS[model]
        for label, outputs, inputs, epilogue in [
            ("qkv", 3 * hidden, hidden, "IDENTITY"), ("out", hidden, hidden, "IDENTITY"),
            ("up+gelu", up, hidden, "GELU"), ("down", hidden, up, "IDENTITY")]:
            r = Rotation(torch, TOKENS, outputs, inputs)
            sets, half_bias = len(r.a), r.bias.half()

            def own(name, r=r, epilogue=epilogue):
                kernel = kernels[name, epilogue]
                return lambda i: kernel(r.a[i], r.w[i], r.bias, r.d[i], TOKENS,
                                        torch.cuda.current_stream().cuda_stream)

            # In place, so that nothing is allocated; as cuBLASLt adds a bias.
            def library(i, r=r, half_bias=half_bias):
                torch.addmm(half_bias, r.a[i], r.w[i].T, out=r.d[i])

            candidates = {"cuBLASLt, no GELU" if epilogue == "GELU" else "cuBLASLt": library,
                          **{name: own(name) for name in names}}
            graphs = {name: graph_of(launch, sets) for name, launch in candidates.items()}
            found = {name: [] for name in graphs}
            for _ in range(ROUNDS // 2):
                for name in [*graphs, *reversed(graphs)]:
                    found[name].append(sustained(*graphs[name], meter))
            operations = 2 * TOKENS * outputs * inputs
            for name, runs in found.items():
                seconds, watts, mhz = (statistics.mean(column) for column in zip(*runs))
                spread = max(s for s, *_ in runs) / min(s for s, *_ in runs)
                print(f"{model:10}{label:8} {name:20} {seconds * 1e6:7.1f} us {operations / seconds / 1e12:5.0f} TFLOP/s"
                      f" {watts:5.0f} W {mhz:5.0f} MHz {watts * seconds / operations * 1e12:5.3f} pJ"
                      f"  (spread {spread:.3f})", flush=True)


if __name__ == "__main__":
    main([m for m in sys.argv[1:2] if m != "all"])
