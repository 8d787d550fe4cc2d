"""Checks and times crates/backend-cuda/kernels/feed_forward_sm90.cu on a Hopper GPU.

    python3 scripts/kernels/check_feed_forward.py

Results beside f64, for many sizes, both 16-bit types and all activations; then times beside the two
kernels of gemm_sm90.cu that do the same: in short looks at the highest clock, and under load that
lasts, where power is the limit. Each part runs in a process of its own with a time limit, so that a
hang is reported. Full output of each goes to a file in $LOGS, if set. The exit status is 1 if anything failed.
"""

import concurrent.futures
import ctypes
import functools
import sys

import gemm_sm90 as gemm

SOURCES = ("prelude.cuh", "hopper.cuh", "feed_forward_sm90_tiles.cuh", "feed_forward_sm90.cu")
BLOCK, TILE_ROWS = 256, 128
CHECK_LIMIT, TIME_LIMIT = 50, 50
UNIT = {"T_F16": 2.0**-11, "T_BF16": 2.0**-8}
# Rows behind the output that must stay as they are.
GUARD_ROWS = 128
ROWS = (1, 7, 63, 64, 65, 127, 128, 129, 256, 257, 1000, 4096)
TIMED_ROWS = (512, 4096, 16_896, 32_768, 131_072)
SUSTAINED_ROWS = (32_768, 131_072)
# Of what is timed: MiniLM.
HIDDEN, INNER = 384, 1536

# Hidden size, activation, type.
CHECKED = [(384, "GELU", "T_F16"), (384, "GELU", "T_BF16"), (256, "GELU", "T_F16"),
           (256, "GELU", "T_BF16"), (384, "OTHERS", "T_F16")]


def shared_bytes(hidden):
    """The same sum as SHARED_BYTES in the kernel."""
    rest = 128 * hidden * 2 + 8 * 2048
    stages = (227 * 1024 - rest - 2048) // (128 * 128)
    return rest + stages * 128 * 128 + 8 * (2 * stages + 4) + 1024


class FeedForward(gemm.HopperKernel):
    def __init__(self, hidden, activation, type_macro):
        cubin, log = gemm.compile_cubin(dict(HIDDEN=hidden), activation, type_macro, SOURCES)
        for line in log.splitlines():
            if "C75" in line or "spill" in line and " 0 bytes spill stores" not in line:
                print(line)
        super().__init__(b"vecmill_feed_forward_sm90", cubin, type_macro, BLOCK,
                         shared_bytes(hidden), 1)

    def __call__(self, x, w1, b1, w2, b2, gain, beta, y, rows, stream, most_blocks=None,
                 backwards=0):
        inner, hidden = w1.shape
        blocks = min(-(-rows // TILE_ROWS), self.resident_clusters,
                     most_blocks or self.resident_clusters)
        maps = [self.map(x, rows, hidden, 64), self.map(w1, inner, hidden, 64),
                self.map(w2, hidden, inner, 128), self.map(y, rows, hidden, 16)]
        scalars = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (b1, b2, gain, beta)]
        scalars += [ctypes.c_float(1e-12), *(ctypes.c_uint32(n) for n in (rows, inner, backwards))]
        self.launch(blocks, maps, scalars, stream)


# ---- Checks, in processes of their own ----


class Problem:
    """Inputs, the result in f64 and the error allowed.

    Sums on tensor cores err by at most 2^-23 of the terms' sizes with every 16 terms. Roundings of
    the intermediate to T are independent and as often up as down: a sum of them exceeds 8 times the
    root of their squares with a probability below 2^-40 (Hoeffding)."""

    def __init__(self, rows, hidden, inner, activation, type_macro):
        import torch
        from check_gemm_sm90 import ACTIVATIONS, make

        dtype = {"T_F16": torch.float16, "T_BF16": torch.bfloat16}[type_macro]
        unit, self.rows = UNIT[type_macro], rows
        self.backwards = False
        offset = 3 * torch.randn((rows, 1), device="cuda")
        self.x = (make(torch, (rows, hidden), 1.0, torch.float32) + offset).to(dtype)
        self.w1 = make(torch, (inner, hidden), hidden**-0.5, dtype)
        self.w2 = make(torch, (hidden, inner), inner**-0.5, dtype)
        self.b1 = make(torch, (inner,), 0.5, torch.float32)
        self.b2, self.gain, self.beta = (make(torch, (hidden,), 1.0, torch.float32) for _ in range(3))
        self.y = torch.empty((rows + GUARD_ROWS, hidden), device="cuda", dtype=dtype)
        x, w1, w2 = (matrix.double() for matrix in (self.x, self.w1, self.w2))
        b1, b2, gain = (vector.double() for vector in (self.b1, self.b2, self.gain))

        up = x @ w1.T + b1
        error = (x.abs() @ w1.T.abs() + b1.abs()) * ((hidden / 16 + 4) * 2.0**-23)
        middle = ACTIVATIONS[activation](torch, up)
        error = 1.2 * error + middle.abs() * 2.0**-15
        rounding = middle.abs() * unit + 2.0**-24
        sums = middle @ w2.T + b2 + x
        sizes = middle.abs() @ w2.T.abs() + b2.abs() + x.abs()
        error = (error @ w2.T.abs() + 8 * (rounding.square() @ w2.T.square()).sqrt()
                 + sizes * ((inner / 16 + 8) * 2.0**-23))
        mean, variance = sums.mean(1, keepdim=True), sums.var(1, keepdim=True, correction=0)
        deviation = variance.sqrt()
        scaled = (sums - mean) / (variance + 1e-12).sqrt()
        # A row's mean and deviation err by no more than the root of the mean square of its errors.
        of_row = error.square().mean(1, keepdim=True).sqrt()
        error = (error + of_row * (1 + scaled.abs())) / deviation + 2.0**-20 * (1 + scaled.abs())
        self.want = scaled * gain + self.beta.double()
        self.bound = error * gain.abs() + self.want.abs() * (1.01 * unit) + 2.0**-24

    def run(self, kernel, most_blocks=None, y=None):
        """Every other time from the last rows on, whose results are the same bits."""
        import torch

        self.y.fill_(float("nan"))
        kernel(self.x, self.w1, self.b1, self.w2, self.b2, self.gain, self.beta,
               self.y if y is None else y, self.rows, torch.cuda.current_stream().cuda_stream,
               most_blocks, self.backwards)
        self.backwards = not self.backwards
        torch.cuda.synchronize()

    def failure(self):
        import torch
        from check_gemm_sm90 import report

        if not self.y[self.rows:].isnan().all():
            return "wrote past the last row"
        return report(torch, self.y[: self.rows], self.want, self.bound)

    def worst(self):
        return ((self.y[: self.rows].double() - self.want).abs() / self.bound).max().item()


def cases(hidden):
    """(rows, inner, most blocks), the simplest first."""
    found = [(128, 64, None), (128, 128, None), (128, 4 * hidden, None), (256, 4 * hidden, None)]
    found += [(rows, inner, None) for rows in ROWS for inner in (64, 192, 4 * hidden)]
    found += [(1000, inner, blocks) for inner in (64, 128, 4 * hidden) for blocks in (1, 2, 3)]
    return found + [(4096, 4 * hidden, 5), (20_000, 4 * hidden, None), (33_333, 320, None)]


def check_cases(kernel, hidden, activation, type_macro, chosen):
    failures, worst = 0, 0.0
    for rows, inner, blocks in chosen:
        label = f"{activation} {type_macro} {rows} x {hidden} x {inner}, blocks: {blocks or 'all'}"
        print("running", label, flush=True)
        problem = Problem(rows, hidden, inner, activation, type_macro)
        problem.backwards = rows % 3 == 0
        problem.run(kernel, blocks)
        failure = problem.failure()
        worst = max(worst, problem.worst())
        if failure:
            failures += 1
            print(f"  FAIL {label}: {failure}", flush=True)
            if failures >= 4:
                break
    print(f"  {activation} {type_macro} hidden {hidden}: {len(chosen)} cases, {failures} failed, worst "
          f"{worst:.3f} of its bound, {kernel.resident_clusters} blocks", flush=True)
    return failures


def check_bits(kernel, hidden, type_macro):
    """The same bits in each of 20 runs, however rows are dealt out, and in place."""
    import torch

    problem = Problem(5000, hidden, 4 * hidden, "GELU", type_macro)
    problem.run(kernel)
    first = problem.y.clone().view(torch.int16)
    failures = 0
    for repeat in range(20):
        print("running repetition", repeat, flush=True)
        problem.run(kernel, 7 if repeat == 10 else None)
        if not torch.equal(problem.y.view(torch.int16), first):
            failures += 1
            print(f"  FAIL run {repeat} gave other bits", flush=True)
    print("running in place", flush=True)
    problem.run(kernel, y=problem.x)
    if not torch.equal(problem.x.view(torch.int16), first[: problem.rows]):
        failures += 1
        print("  FAIL in place: other bits", flush=True)
    return failures


def check(number):
    import torch

    hidden, activation, type_macro = CHECKED[int(number)]
    torch.manual_seed(1)
    torch.zeros(1, device="cuda")
    failures = 0
    several = activation == "OTHERS"
    for activation in ("GELU_TANH", "RELU", "SILU", "TANH", "IDENTITY") if several else (activation,):
        kernel = FeedForward(hidden, activation, type_macro)
        chosen = [(1000, 4 * hidden, None), (300, 128, 1)] if several else cases(hidden)
        failures += check_cases(kernel, hidden, activation, type_macro, chosen)
    if not several and not failures:
        failures += check_bits(kernel, hidden, type_macro)
    return 1 if failures else 0


# ---- Times ----


@functools.cache
def kernels():
    """Of both ways, in the order of `candidates`."""
    first, second = gemm.CONFIGS["pp128x192"], gemm.NORM_CONFIGS["n384:pp128x192c1x2"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        codes = pool.map(lambda one: gemm.compile_cubin(*one)[0], [(first, "GELU"), (second,)])
        fused = FeedForward(384, "GELU", "T_F16")
    return *(gemm.Kernel(c, code) for c, code in zip((first, second), codes)), fused


def candidates(torch, rows):
    """What does the block, by name, as functions of which of `count` sets of buffers; and count:
    enough of them that the 50 MB of cache hold none until its next turn."""
    from check_gemm_sm90 import Rotation, make

    r = Rotation(torch, rows, INNER, HIDDEN)
    count = len(r.a)
    w2 = [make(torch, (HIDDEN, INNER), INNER**-0.5) for _ in range(count)]
    b2, gain, beta = (make(torch, (HIDDEN,), 1.0, torch.float32) for _ in range(3))
    y = [torch.empty_like(r.a[0]) for _ in range(count)]
    up, down, fused = kernels()

    def stream():
        return torch.cuda.current_stream().cuda_stream

    def two(i):
        up(r.a[i], r.w[i], r.bias, r.d[i], rows, stream())
        down(r.d[i], w2[i], b2, y[i], rows, stream(), residual=r.a[i], gain=gain, beta=beta)

    def one(i):
        fused(r.a[i], r.w[i], r.bias, w2[i], b2, gain, beta, y[i], rows, stream())

    return {"two kernels": two, "fused": one}, count


def time_short(_):
    import torch
    from check_gemm_sm90 import microseconds

    torch.zeros(1, device="cuda")
    for rows in TIMED_ROWS:
        launches, count = candidates(torch, rows)

        class Sets:
            a = range(count)

        for name, launch in launches.items():
            spent = microseconds(torch, Sets, launch)
            rate = 4e-6 * rows * HIDDEN * INNER / spent
            print(f"time {rows:7} rows  {name:14} {spent:8.1f} us  {rate:5.0f} TFLOP/s", flush=True)
    return 0


def time_sustained(_):
    import torch
    from sustained_gemm_sm90 import Meter, measure

    torch.zeros(1, device="cuda")
    meter = Meter()
    for rows in SUSTAINED_ROWS:
        launches, count = candidates(torch, rows)
        measure(f"time {rows:7} rows", launches, count, 4 * rows * HIDDEN * INNER, meter)
    meter.process.terminate()
    return 0


# ---- The process in charge ----


def main():
    failed = []
    with concurrent.futures.ThreadPoolExecutor(len(CHECKED)) as pool:
        numbers = range(len(CHECKED))
        for number, (status, output) in zip(numbers, pool.map(lambda n: gemm.child(__file__, "check", n, CHECK_LIMIT), numbers)):
            print(f"check {CHECKED[number]}: {'ok' if status == 0 else status}")
            lines = output.splitlines()
            wanted = [line for line in lines if not line.startswith("running")]
            print("\n".join(wanted[-30:] + (lines[-1:] if status == "hang" else [])))
            if status != 0:
                failed.append(CHECKED[number])
    for mode in ("short", "sustained"):
        status, output = gemm.child(__file__, mode, "", TIME_LIMIT)
        print("\n".join(line.removeprefix("time ") for line in output.splitlines()
                        if line.startswith("time ") or status != 0))
        if status != 0:
            failed.append((mode, status))
    print(f"failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit({"check": check, "short": time_short, "sustained": time_sustained}[sys.argv[2]](sys.argv[3]))
    sys.exit(main())
