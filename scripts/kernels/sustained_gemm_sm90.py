"""Linear layers on a Hopper GPU under load that lasts, where power and not the clock is the limit.

    python3 scripts/kernels/sustained_gemm_sm90.py MODEL [PRODUCT,PRODUCT] [CONFIGURATION,CONFIGURATION]

Short looks (check_gemm_sm90.py) run at the highest clock; a server that is busy doesn't. Here each
candidate runs for a third of a second at a time, in turns from the first to the last and back, and the
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
from compile import Compiler
from harness import Kernels

TOKENS = 32_768
SECONDS, SETTLING_SECONDS = 0.35, 0.15


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


PRODUCTS = ("qkv", "out", "up+gelu", "down", "out+norm", "down+norm")
MULTIPROCESSORS = 132


def library(r, norm):
    """cuBLASLt's product, in place, and the normalisation that follows it."""
    bias = r.bias.half()
    rows, columns = r.d[0].shape

    def product(i):
        torch.addmm(bias, r.a[i], r.w[i].T, out=r.d[i])

    def product_and_norm(i):
        product(i)
        norm.launch(f"vecmill_add_norm_{columns}", 16 * MULTIPROCESSORS, 128, r.d[i], r.residual[i],
                    r.gain, r.beta, r.normalised[i], None, rows, columns, 1e-12, 1)

    if norm:
        r.normalised = [torch.empty_like(d) for d in r.d]
    return product_and_norm if norm else product


def own(r, kernel):
    twice = kernel.c["DEFERRED"] and not kernel.c["NORM"]
    bias = torch.stack([r.bias, r.bias], 1) if twice else r.bias

    def launch(i):
        kernel(r.a[i], r.w[i], bias, r.d[i], r.d[i].shape[0],
               torch.cuda.current_stream().cuda_stream, **r.more(kernel.c, i))

    return launch


def measure(label, candidates, sets, operations, meter):
    graphs = {name: graph_of(launch, sets) for name, launch in candidates.items()}
    found = {name: [] for name in graphs}
    for name in [*graphs, *reversed(graphs)]:
        found[name].append(sustained(*graphs[name], meter))
    for name, runs in found.items():
        seconds, watts, mhz = (statistics.mean(column) for column in zip(*runs))
        print(f"{label:20} {name:22} {seconds * 1e6:7.1f} us {operations / seconds / 1e12:5.0f} TFLOP/s"
              f" {watts:5.0f} W {mhz:5.0f} MHz {watts * seconds / operations * 1e12:6.3f} pJ", flush=True)


def main(model, products=",".join(PRODUCTS), names=None):
    torch.zeros(1, device="cuda")
    hidden, up = MODELS[model]
    add_norm = Kernels(Compiler(None), "norm.cu", "F16")
    meter = Meter()
    sizes = {"qkv": (3 * hidden, hidden), "out": (hidden, hidden), "up+gelu": (up, hidden), "down": (hidden, up)}
    for product in products.split(","):
        outputs, inputs = sizes[product.removesuffix("+norm")]
        configs = {**gemm.CONFIGS, **gemm.NORM_CONFIGS, **gemm.DEFER_CONFIGS}
        chosen = {n: c for n, c in configs.items() if (not names or n in names.split(","))
                  and not c["RESIDENT"] and bool(c["NORM"]) == product.endswith("norm")
                  and (not c["NORM"] or f"{hidden}:" in n)}
        epilogue = "GELU" if product == "up+gelu" else "IDENTITY"
        with ThreadPoolExecutor(16) as pool:
            cubins = list(pool.map(lambda c, e=epilogue: gemm.compile_cubin(c, e)[0], chosen.values()))
        r = Rotation(torch, TOKENS, outputs, inputs)
        norm = add_norm if product.endswith("norm") else None
        candidates = {"cuBLASLt, no GELU" if epilogue == "GELU" else "cuBLASLt": library(r, norm)}
        for (name, c), cubin in zip(chosen.items(), cubins):
            candidates[name] = own(r, gemm.Kernel(c, cubin))
        measure(f"{model} {product}", candidates, len(r.a), 2 * TOKENS * outputs * inputs, meter)
    meter.process.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
