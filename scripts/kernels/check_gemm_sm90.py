"""Checks and times crates/backend-cuda/kernels/gemm_sm90.cu on a Hopper GPU.

    python3 scripts/kernels/check_gemm_sm90.py [--no-times] [name part ...]

Every configuration runs in a process of its own with a time limit, so that a hang is reported and
costs that configuration alone: first all checks, a few at a time, then the timings one by one.
Full output of each goes to a file in $LOGS, if set. The exit status is 1 if anything failed.
"""

import concurrent.futures
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import gemm_sm90 as gemm

CHECK_LIMIT, TIME_LIMIT, CHECKS_AT_ONCE = 150, 90, 5
# No timing starts later than this after the start.
LAST_START = 500
MODELS = {"minilm": (384, 1536), "bge-base": (768, 3072), "bge-large": (1024, 4096)}
TOKENS = (4096, 32768)
MEASURE_MORE = {("minilm", 131072), ("minilm", 512), ("bge-base", 512)}
UNIT = {"T_F16": 2.0**-11, "T_BF16": 2.0**-8}
GUARD_ROWS = 128


# ---- In the processes of configurations ----


def cubin(name, epilogue, type_macro):
    path = Path(os.environ["CUBINS"]) / f"{name.replace(':', '_')}-{epilogue}-{type_macro}"
    if not path.exists():
        code, log = gemm.compile_cubin(all_configs()[name], epilogue, type_macro)
        path.write_bytes(code)
        print("\n".join(line for line in log.splitlines() if "spill" in line or "arning" in line))
    return path.read_bytes()


def all_configs():
    return {**gemm.CONFIGS, **gemm.NORM_CONFIGS, **gemm.DEFER_CONFIGS}


def make(torch, shape, scale=1.0, dtype=None):
    return (torch.randn(shape, device="cuda") * scale).to(dtype or torch.float16)


def report(torch, got, want, bound):
    """One line on what is wrong, or None."""
    wrong = ~((got.double() - want).abs() <= bound)
    if not wrong.any():
        return None
    at = wrong.nonzero()
    r, c = at[0].tolist()
    unwritten = got.isnan().sum().item()
    padded = torch.nn.functional.pad(wrong, (0, -wrong.shape[1] % 8, 0, -wrong.shape[0] % 8))
    blocks = padded.view(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8).any(3).any(1)
    lines = ["".join("x" if b else "." for b in row) for row in blocks[:16, :64].tolist()]
    detail = "\n".join(f"      {8 * i:5} {line}" for i, line in enumerate(lines))
    return (f"{len(at)} of {wrong.numel()} wrong, {unwritten} unwritten; first ({r}, {c}): got "
            f"{got[r, c].item():.6g}, want {want[r, c].item():.6g}, bound {bound[r, c].item():.2g}; rows "
            f"{at[:, 0].min().item()}..{at[:, 0].max().item()}, columns {at[:, 1].min().item()}.."
            f"{at[:, 1].max().item()}; 8x8 blocks:\n{detail}")


ACTIVATIONS = {
    "IDENTITY": lambda torch, x: x,
    "GELU": lambda torch, x: torch.nn.functional.gelu(x),
    "GELU_TANH": lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
    "RELU": lambda torch, x: torch.relu(x),
    "SILU": lambda torch, x: torch.nn.functional.silu(x),
    "TANH": lambda torch, x: torch.tanh(x),
}


class Deferred:
    """Rows whose normalisation is deferred, from sums with means far from zero."""

    def __init__(self, torch, rows, columns, dtype):
        sums = make(torch, (rows, columns), 1.0, torch.float32) + 3 * torch.randn((rows, 1), device="cuda")
        self.gain, self.beta = (make(torch, (columns,), 1.0, torch.float32) for _ in range(2))
        self.rows = (sums * self.gain).to(dtype)
        self.moments = moments(torch, sums.double()).float()
        sums, gain = sums.double(), self.gain.double()
        self.scale = 1 / (sums.var(1, keepdim=True, correction=0) + 1e-12).sqrt()
        self.mean = sums.mean(1, keepdim=True)
        self.normalised = self.scale * (self.rows.double() - self.mean * gain) + self.beta.double()
        # Of which sums in f32 lose a part; and so does the variance, by what cancels in it.
        cancelled = 1 + (self.mean * self.scale).square()
        self.terms = self.scale * (self.rows.double().abs() + self.mean.abs() * gain.abs()) + self.beta.double().abs()
        self.terms = self.terms + cancelled * (self.normalised - self.beta.double()).abs()


def moments(torch, sums):
    """Of each row's quarters: sums, and sums of squares."""
    parts = sums.view(sums.shape[0], 4, -1)
    return torch.stack([parts.sum(2), parts.square().sum(2)], 2).contiguous()


class Problem:
    """Inputs, the result in f64 and the error allowed: rounding of the output, and 2^-20 of the
    absolute terms for sums in f32."""

    def __init__(self, torch, c, rows, columns, inner, epilogue, type_macro):
        dtype = {"T_F16": torch.float16, "T_BF16": torch.bfloat16}[type_macro]
        self.torch, self.c, self.rows, self.columns = torch, c, rows, columns
        self.backwards = rows % 3 == 0
        self.a = make(torch, (rows, inner), 1.0, dtype)
        self.w = make(torch, (columns, inner), inner**-0.5, dtype)
        self.bias = make(torch, (columns,), 0.5, torch.float32)
        self.d = torch.empty((rows + GUARD_ROWS, columns), device="cuda", dtype=dtype)
        a, w = self.a.double(), self.w.double()
        value = a @ w.T + self.bias.double()
        error = (a.abs() @ w.abs().T + self.bias.double().abs()) * 2.0**-20
        self.more, self.want_moments = {}, None
        if c["NORM"] == 2:
            value, error = self.sums(value, error, dtype)
            gain = self.more["gain"].double()
            self.want, error = value * gain, error * gain.abs()
        elif c["DEFERRED"]:
            deferred = Deferred(torch, rows, inner, dtype)
            self.a = deferred.rows
            bias = w @ deferred.beta.double() + self.bias.double()
            self.bias = torch.stack([w @ deferred.gain.double(), bias], 1).float().contiguous()
            self.more = dict(moments=deferred.moments)
            value = deferred.normalised @ w.T + bias - w @ deferred.beta.double()
            error = (deferred.terms @ w.abs().T + bias.abs()) * 2.0**-20
            self.want = ACTIVATIONS[epilogue](torch, value)
            error = 1.2 * error + self.want.abs() * (0 if epilogue == "IDENTITY" else 2.0**-15)
        elif c["NORM"]:
            offset = 3 * torch.randn((rows, 1), device="cuda")
            residual = (make(torch, (rows, columns), 1.0, torch.float32) + offset).to(dtype)
            gain, beta = (make(torch, (columns,), 1.0, torch.float32) for _ in range(2))
            self.more = dict(residual=residual, gain=gain, beta=beta)
            value += residual.double()
            error = (error + residual.double().abs() * 2.0**-20).amax(1, keepdim=True)
            mean, variance = value.mean(1, keepdim=True), value.var(1, keepdim=True, correction=0)
            scaled = (value - mean) / (variance + 1e-12).sqrt()
            error = gain.double().abs() * (error / variance.sqrt() + 2.0**-20) * (1 + scaled.abs())
            self.want = scaled * gain.double() + beta.double()
        else:
            self.want = ACTIVATIONS[epilogue](torch, value)
            error = 1.2 * error + self.want.abs() * (0 if epilogue == "IDENTITY" else 2.0**-15)
        self.bound = error + self.want.abs() * UNIT[type_macro] + 2.0**-24

    def sums(self, value, error, dtype):
        """With the residual; and what comes out beside the product."""
        torch, c, (rows, columns) = self.torch, self.c, value.shape
        self.more = dict(gain=make(torch, (columns,), 1.0, torch.float32),
                         output_moments=torch.empty((rows + GUARD_ROWS, 4, 2), device="cuda"))
        if c["DEFERRED"]:
            residual = Deferred(torch, rows, columns, dtype)
            self.more |= dict(residual=residual.rows, moments=residual.moments,
                              residual_gain=residual.gain, residual_beta=residual.beta)
            value, error = value + residual.normalised, error + residual.terms * 2.0**-20
        else:
            offset = 3 * torch.randn((rows, 1), device="cuda")
            residual = (make(torch, (rows, columns), 1.0, torch.float32) + offset).to(dtype)
            self.more |= dict(residual=residual)
            value, error = value + residual.double(), error + residual.double().abs() * 2.0**-20
        self.want_moments = moments(torch, value)
        count, worst = columns // 4, error.amax(1, keepdim=True)
        squares = self.want_moments[..., 1]
        of_squares = 2 * worst * (count * squares).sqrt() + count * worst**2 + squares * 2.0**-18
        of_sums = count * worst + (count * squares).sqrt() * 2.0**-18
        self.moments_bound = torch.stack([of_sums.expand_as(squares), of_squares], 2)
        return value, error

    def run(self, kernel, most_clusters=None):
        """From the other end each time: results must not depend on it."""
        self.backwards = not self.backwards
        self.d.fill_(float("nan"))
        if self.want_moments is not None:
            self.more["output_moments"].fill_(float("nan"))
        kernel(self.a, self.w, self.bias, self.d, self.rows,
               self.torch.cuda.current_stream().cuda_stream, most_clusters=most_clusters,
               backwards=self.backwards, **self.more)
        self.torch.cuda.synchronize()

    def failure(self):
        if not self.d[self.rows:].isnan().all():
            return "wrote past the last row"
        if self.want_moments is not None:
            found = self.more["output_moments"]
            if not found[self.rows:].isnan().all():
                return "wrote moments past the last row"
            flat = (found[: self.rows], self.want_moments, self.moments_bound)
            failure = report(self.torch, *(x.reshape(self.rows, 8) for x in flat))
            if failure:
                return "moments: " + failure
        return report(self.torch, self.d[: self.rows], self.want, self.bound)


def columns_of(c):
    """Of whole rows, where the configuration takes no others."""
    return c["TILE_COLUMNS"] * (4 if c["NORM"] == 2 else c["CLUSTER_COLUMNS"])


def cases(c):
    """(rows, columns, inner, most clusters), the simplest first."""
    wide = columns_of(c)
    all_columns = (wide,) if c["NORM"] else (wide, 1152, 384, 1536, 96, 40)
    most_inner = 64 * c["RESIDENT"] or 1 << 30
    found = [(128, wide, 64, None), (128, wide, 128, None), (128, wide, 384, None)]
    for rows in (1, 7, 64, 127, 129, 1000, 4096):
        for columns in all_columns:
            found += [(rows, columns, inner, None) for inner in (64, 40, 384, 1536)]
    found += [(1000, columns, 384, clusters) for columns in all_columns for clusters in (1, 2, 3)]
    found += [(4096, 384, 1536, 5), (333, 1152, 72, 1)] if not c["NORM"] else [(4096, wide, 1536, 5)]
    return [case for case in found if case[2] <= most_inner]


def check(name):
    import torch

    c = all_configs()[name]
    torch.manual_seed(1)
    torch.zeros(1, device="cuda")
    failures = done = 0
    kinds = [("IDENTITY", "T_F16"), ("GELU", "T_F16"), ("IDENTITY", "T_BF16")]
    if name == "co128x64":
        kinds += [(e, "T_F16") for e in ("GELU_TANH", "RELU", "SILU", "TANH")]
    for epilogue, type_macro in kinds[:: 2 if c["NORM"] else 1]:
        kernel = gemm.Kernel(c, cubin(name, epilogue, type_macro), type_macro)
        for rows, columns, inner, clusters in cases(c)[:: 1 if epilogue == "IDENTITY" else 5]:
            label = f"{epilogue} {type_macro} {rows}x{columns}x{inner} clusters {clusters or 'all'}"
            print("running", label, flush=True)
            problem = Problem(torch, c, rows, columns, inner, epilogue, type_macro)
            problem.run(kernel, clusters)
            failure = problem.failure()
            done += 1
            if failure:
                failures += 1
                print(f"  FAIL {name} {label}: {failure}", flush=True)
                if failures >= 6:
                    return 1
    kernel = gemm.Kernel(c, cubin(name, "IDENTITY", "T_F16"))
    columns = columns_of(c) if c["NORM"] else 1152
    problem = Problem(torch, c, 5000, columns, 384, "IDENTITY", "T_F16")
    problem.run(kernel)
    first = problem.d.clone().view(torch.int16)
    for repeat in range(20):
        problem.run(kernel)
        if not torch.equal(problem.d.view(torch.int16), first):
            failures += 1
            print(f"  FAIL {name}: run {repeat} gave other bits", flush=True)
            break
    print(f"  {name}: {done} cases, {failures} failed, {kernel.resident_clusters} clusters of {kernel.cluster}")
    return 1 if failures else 0


def shapes(norm):
    """(label, tokens, outputs, inputs, epilogue)"""
    for model, (hidden, up) in MODELS.items():
        products = [("out", hidden, hidden, "IDENTITY"), ("down", hidden, up, "IDENTITY")]
        if not norm:
            products += [("qkv", 3 * hidden, hidden, "IDENTITY"), ("up", up, hidden, "IDENTITY"),
                         ("up+gelu", up, hidden, "GELU")]
        for tokens in sorted({*TOKENS, *(t for m, t in MEASURE_MORE if m == model)}):
            for product, outputs, inputs, epilogue in products:
                yield f"{model} {product}@{tokens}", tokens, outputs, inputs, epilogue


class Rotation:
    """Buffers of one shape, enough of them that the 50 MB of cache hold none until its next turn."""

    def __init__(self, torch, tokens, outputs, inputs):
        sets = max(2, min(64, -(-(200 << 20) // (2 * tokens * (outputs + inputs)))))
        self.w = [make(torch, (outputs, inputs), inputs**-0.5) for _ in range(sets)]
        self.bias = make(torch, (outputs,), 0.5, torch.float32)
        self.gain, self.beta = torch.ones_like(self.bias), torch.zeros_like(self.bias)
        self.a = [make(torch, (tokens, inputs)) for _ in range(sets)]
        self.residual = [make(torch, (tokens, outputs)) for _ in range(sets)]
        self.d = [torch.empty((tokens, outputs), device="cuda", dtype=torch.float16) for _ in range(sets)]
        unit = torch.tensor([0.0, inputs / 4], device="cuda").expand(tokens, 4, 2)  # sum, and of squares
        self.moments = [(unit.clone(), torch.empty((tokens, 4, 2), device="cuda")) for _ in range(sets)]

    def more(self, c, i):
        """What a configuration takes beside the product's operands."""
        moments, output_moments = self.moments[i]
        read = dict(moments=moments) if c["DEFERRED"] else {}
        if not c["NORM"]:
            return read
        norm = dict(residual=self.residual[i], gain=self.gain)
        if c["NORM"] == 1:
            return dict(**norm, beta=self.beta)
        if c["DEFERRED"]:
            read |= dict(residual_gain=self.gain, residual_beta=self.beta)
        return dict(**norm, output_moments=output_moments, **read)


def microseconds(torch, rotation, launch):
    """Median over replays of a graph that goes through all buffers at least once."""
    sets = len(rotation.a)
    launches = sets * max(1, 12 // sets)
    launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            launch(i % sets)
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / launches)
    return sorted(times[2:])[3]


def time_config(name):
    import torch

    c = all_configs()[name]
    torch.zeros(1, device="cuda")
    kernels = {e: gemm.Kernel(c, cubin(name, e, "T_F16")) for e in ("IDENTITY", *(() if c["NORM"] else ("GELU",)))}
    for label, tokens, outputs, inputs, epilogue in shapes(c["NORM"]):
        if c["RESIDENT"] * 64 and inputs > c["RESIDENT"] * 64:
            continue
        if c["NORM"] and outputs != columns_of(c):
            continue
        r = Rotation(torch, tokens, outputs, inputs)

        def launch(i):
            more = r.more(c, i)
            kernels[epilogue](r.a[i], r.w[i], r.bias, r.d[i], tokens,
                              torch.cuda.current_stream().cuda_stream, **more)

        r.bias = torch.stack([r.bias, r.bias], 1) if c["DEFERRED"] and not c["NORM"] else r.bias
        print("time", json.dumps([name, label, microseconds(torch, r, launch)]), flush=True)
    return 0


def time_torch(_):
    import torch

    f = torch.nn.functional
    for norm in (False, True):
        for label, tokens, outputs, inputs, epilogue in shapes(norm):
            r = Rotation(torch, tokens, outputs, inputs)
            bias, gain, beta = r.bias.half(), r.gain.half(), r.beta.half()

            def launch(i):
                x = f.linear(r.a[i], r.w[i], bias)
                if norm:
                    x = f.layer_norm(x + r.residual[i], (outputs,), gain, beta, 1e-12)
                elif epilogue == "GELU":
                    x = f.gelu(x)

            print("time", json.dumps(["torch", ("norm " if norm else "") + label,
                                      microseconds(torch, r, launch)]), flush=True)
    return 0


# ---- The process in charge ----


def print_table(title, times, norm):
    names = list(dict.fromkeys(n for n, _ in times))
    print(f"\n{title}: microseconds (TFLOP/s); the best of ours marked *")
    for number, n in enumerate(names):
        print(f"  [{number}] {n}")
    for label, tokens, outputs, inputs, _ in shapes(norm):
        row = [times.get((n, label)) for n in names]
        ours = [t for n, t in zip(names, row) if t and n != "torch"]
        cells = []
        for t in row:
            rate = f"{2e-6 * tokens * outputs * inputs / t:.0f}" if t else ""
            cells.append(f"{t:.1f}({rate}){'*' if ours and t == min(ours) else ''}" if t else "-")
        print(f"{label:24}" + " ".join(f"{cell:>12}" for cell in cells))


def main(parts):
    started = time.monotonic()
    timed = "--no-times" not in parts
    parts = [part for part in parts if part != "--no-times"]
    os.environ.setdefault("CUBINS", tempfile.mkdtemp())
    names = [n for n in all_configs() if not parts or any(p in n for p in parts)]
    failed, passed = [], []
    with concurrent.futures.ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        for name, (status, output) in zip(names, pool.map(lambda n: gemm.child(__file__, "check", n, CHECK_LIMIT), names)):
            lines = output.splitlines()
            print(f"check {name}: {'ok' if status == 0 else status}")
            if status == 0:
                passed.append(name)
                print("\n".join(line for line in lines if "cases" in line))
            else:
                failed.append(name)
                wanted = [line for line in lines if not line.startswith("running")]
                print("\n".join(wanted[:40] if status != "hang" else wanted[:12] + lines[-1:]))
    times = {}
    for mode, name in [("torch", "torch"), *(("time", n) for n in passed)] if timed else []:
        if time.monotonic() - started > LAST_START:
            print(f"no time left for {mode} {name}")
            continue
        status, output = gemm.child(__file__, mode, name, TIME_LIMIT)
        for line in output.splitlines():
            if line.startswith("time "):
                who, label, value = json.loads(line[5:])
                times[who, label] = value
        if status != 0:
            failed.append(f"{mode} {name}")
            print(f"{mode} {name}: {status}\n" + "\n".join(output.splitlines()[-6:]))
    if times:
        norm = {n for n in passed if all_configs()[n]["NORM"]}
        print_table("linear", {k: t for k, t in times.items() if k[0] not in norm and "norm " not in k[1]}, False)
        of_norm = {(n, label.removeprefix("norm ")): t for (n, label), t in times.items()
                   if n in norm or label.startswith("norm ")}
        print_table("linear + residual + norm", of_norm, True)
    print(f"\n{len(passed)} configurations passed; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        mode = {"check": check, "time": time_config, "torch": time_torch}[sys.argv[2]]
        sys.exit(mode(sys.argv[3]))
    sys.exit(main(sys.argv[1:]))
