"""Checks the kernels that write or multiply e4m3 on a Hopper GPU, and times the products beside
cuBLASLt's in f16 and in e4m3.

    timeout 90 python3 scripts/kernels/check_fp8.py

Every result is compared with f64 within what rounding explains. The exit status is 1 if anything
failed. Needs what `harness.py` needs.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import gemm_sm90 as gemm
import torch
from attention import Attention, HopperAttention, starts_of
from compile import Compiler
from harness import ROUNDOFF, UNDERFLOW, Kernels, Report, poisoned, rotation, seconds_each

E4M3 = torch.float8_e4m3fn
# E4M3_SCALE of the kernels, the largest number of the format, half of the distance of the smallest.
SCALE, LARGEST = 2.0, 448.0
ROUNDOFF |= {"E4M3": 2.0**-4}
UNDERFLOW |= {"E4M3": 2.0**-10 / SCALE}
# Of partial sums, by each instruction over 32 values of K.
SUM_ROUNDOFF, SUM_STEP = 2.0**-13, 32
TYPES = {"F16": torch.float16, "E4M3": E4M3}
EPSILON = 1e-5
TOKENS = 32768
MODELS = {"bge-large": (1024, 4096), "bge-base": (768, 3072), "minilm": (384, 1536)}

CONFIGS = {
    "128x192": {},
    "128x192 c2x1": {"CLUSTER_ROWS": 2},
    "128x192 c1x2": {"CLUSTER_COLUMNS": 2},
    "128x128 c2x1": {"TILE_COLUMNS": 128, "STAGES": 5, "CLUSTER_ROWS": 2},
    "64x256 c2x1": {"ROW_BLOCKS": 1, "TILE_COLUMNS": 256, "CLUSTER_ROWS": 2},
    "co 128x256": {"ROW_BLOCKS": 1, "TILE_COLUMNS": 256, "PING_PONG": 0, "SLOTS": 1},
    "co 128x256 c2x1": {
        "ROW_BLOCKS": 1, "TILE_COLUMNS": 256, "PING_PONG": 0, "SLOTS": 1, "CLUSTER_ROWS": 2,
    },
    "co 256x192 c1x2": {"PING_PONG": 0, "STAGES": 3, "CLUSTER_COLUMNS": 2},
}
EPILOGUES = (("IDENTITY", "F16"), ("GELU", "E4M3"))


def decoded(output: torch.Tensor) -> torch.Tensor:
    return output.double() / SCALE if output.dtype == E4M3 else output.double()


def compare(report: Report, name: str, kind: str, case: str, output, want, error) -> None:
    """`error` is that of the value before it is stored."""
    if kind == "E4M3":
        want = want.clamp(-LARGEST / SCALE, LARGEST / SCALE)
    bound = error * (1 + ROUNDOFF[kind]) + want.abs() * ROUNDOFF[kind] + UNDERFLOW[kind]
    # Guarded as the output is, whose own guard is looked at here.
    values = poisoned(*output.shape, dtype=torch.float64)
    values.copy_(decoded(output))
    report.error(name, kind, case, values, want, bound)
    storage = torch.tensor([], dtype=output.dtype, device="cuda").set_(output.untyped_storage())
    report.expect(bool((storage[output.numel() :].float() == 7.0).all()), f"{name} {case}: guard")


# ---- Rows that are normalised, and written a second time in e4m3 ----


def check_norm(report: Report, compiler: Compiler) -> None:
    kernels = Kernels(compiler, "norm.cu", "F16", "-DFP8_OUTPUT=1")
    for columns in (384, 768, 1024, 4096, 1000, 100):
        fits = [c for c in (256, 512, 768, 1024, 4096) if columns <= c and columns % 8 == 0]
        capacity = fits[0] if fits else "any"
        for rows, gain_size in ((1, 1.0), (333, 1.0), (333, 200.0)):
            x, y = (torch.randn((rows, columns), device="cuda").half() for _ in range(2))
            gain = gain_size * torch.randn(columns, device="cuda")
            bias = torch.randn(columns, device="cuda")
            output = poisoned(rows, columns, dtype=torch.float16)
            operand = poisoned(rows, columns, dtype=E4M3)
            kernels.launch(
                f"vecmill_add_norm_{capacity}", rows, 128,
                x, y, gain, bias, output, operand, rows, columns, EPSILON, rows % 2,
            )  # fmt: skip
            total = x.double() + y.double()
            mean, variance = total.mean(1, keepdim=True), total.var(1, keepdim=True, correction=0)
            want = (total - mean) / (variance + EPSILON).sqrt() * gain.double() + bias.double()
            error = (want.abs() + gain.abs().double() + bias.abs().double()) * 2.0**-16
            case = f"{rows} x {columns}, gain {gain_size:.0f}"
            compare(report, f"add_norm_{capacity}", "F16", case, output, want, error)
            compare(report, f"add_norm_{capacity}", "E4M3", case, operand, want, error)


# ---- Attention that writes e4m3 ----


def check_attention(report: Report, compiler: Compiler) -> None:
    lengths = (1, 7, 0, 64, 5, 128, 33, 300, 2)
    starts = starts_of(lengths)
    kinds = [(HopperAttention, 64), *((Attention, size) for size in (32, 48, 64, 96, 20, 30))]
    for kind, head_size in kinds:
        attention = kind(compiler, "F16", head_size, 3, "-DFP8_OUTPUT=1")
        # As large as saturates, too.
        for factor in (1.0, 200.0):
            qkv = attention.qkv(lengths)
            qkv[:, 2 * attention.hidden :] *= factor
            parts = [qkv[a:b] for a, b in pairwise(starts.tolist()) if a < b]
            references = [attention.expected(part, None) for part in parts]
            want, error = (torch.cat([r[i] for r in references]) for i in range(2))
            for rows in attention.row_choices:
                output = poisoned(len(qkv), attention.hidden, dtype=E4M3)
                attention.run(rows, qkv, starts, lengths, output)
                name = f"{attention.name(rows)} {head_size}"
                compare(report, name, "E4M3", f"values times {factor:.0f}", output, want, error)


# ---- Products ----


def compiled() -> dict:
    """Machine code of every configuration with every epilogue, made at once."""
    jobs = {
        (name, epilogue, kind): gemm.config(FP8=1, FP8_OUTPUT=int(kind == "E4M3"), **macros)
        for name, macros in CONFIGS.items()
        for epilogue, kind in EPILOGUES
    }
    gemm.compile_cubin(gemm.config())  # loads the compiler once
    with ThreadPoolExecutor(16) as pool:
        codes = pool.map(lambda job: gemm.compile_cubin(job[1], job[0][1])[0], jobs.items())
        return {key: gemm.Kernel(c, code) for (key, c), code in zip(jobs.items(), codes)}


def random_e4m3(rows: int, columns: int, size: float) -> torch.Tensor:
    values = torch.randn((rows, columns), device="cuda") * size
    return values.clamp(-LARGEST, LARGEST).to(E4M3)


class Product:
    """Operands as the backend has them: activations times SCALE, a weight's rows up to 448."""

    def __init__(self, rows: int, columns: int, inner: int) -> None:
        self.a = random_e4m3(rows, inner, SCALE)
        self.w = random_e4m3(columns, inner, 100.0)
        scale = (0.5 + torch.rand(columns, device="cuda")) / (100.0 * SCALE * inner**0.5)
        self.bias = 0.5 * torch.randn(columns, device="cuda")
        self.affine = torch.stack([scale, self.bias], dim=1).contiguous()

    def run(self, kernel, d: torch.Tensor, most_clusters: int | None = None) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        kernel(self.a, self.w, self.affine, d, len(self.a), stream, most_clusters=most_clusters)

    def expected(self, epilogue: str) -> tuple[torch.Tensor, torch.Tensor]:
        a, w = self.a.double(), self.w.double()
        scale, bias = self.affine.double().unbind(1)
        value = a @ w.T * scale + bias
        steps = -(-a.shape[1] // SUM_STEP) + 2
        error = a.abs() @ w.abs().T * scale * steps * SUM_ROUNDOFF + value.abs() * 2.0**-20
        if epilogue == "GELU":
            value = torch.nn.functional.gelu(value)
            error = 1.13 * error + value.abs() * 2.0**-15
        return value, error


def check_products(report: Report, kernels: dict) -> None:
    sizes = [(128, 384, 128), (1, 384, 384), (7, 1152, 400), (129, 48, 1536), (1000, 1536, 384)]
    sizes += [(4096, 1024, 1024), (333, 1024, 4096), (1000, 400, 16)]
    for (name, epilogue, kind), kernel in kernels.items():
        for size in sizes:
            product = Product(*size)
            want, error = product.expected(epilogue)
            first = None
            for clusters in (None, 3):
                d = poisoned(size[0], size[1], dtype=TYPES[kind])
                product.run(kernel, d, clusters)
                torch.cuda.synchronize()
                case = f"{size} clusters {clusters or 'all'}"
                compare(report, f"{name} {epilogue}", kind, case, d, want, error)
                bits = d.view(torch.uint8)
                report.expect(first is None or torch.equal(first, bits), f"{name} {case}: bits")
                first = bits


def library_times(rows: int, columns: int, inner: int, sets: int) -> dict[str, float]:
    """PyTorch's products, cuBLASLt's: f16 with a bias, e4m3 by one scale per matrix or per row."""
    products = [Product(rows, columns, inner) for _ in range(sets)]
    halves = [(p.a.half(), p.w.half() / 100, p.bias.half()) for p in products]
    times = {"f16": seconds_each([lambda h=h: torch.nn.functional.linear(*h) for h in halves])}
    one = torch.ones((), device="cuda")
    by_row, by_column = torch.ones((rows, 1), device="cuda"), torch.ones((1, columns), device="cuda")
    for name, scales, fast in (
        ("e4m3", (one, one), False), ("e4m3 fast", (one, one), True),
        ("e4m3 rows", (by_row, by_column), False), ("e4m3 rows fast", (by_row, by_column), True),
    ):  # fmt: skip
        half = torch.float16 if name.startswith("e4m3 f") or name == "e4m3" else torch.bfloat16

        def launch(p, scales=scales, fast=fast, half=half):
            torch._scaled_mm(p.a, p.w.T, *scales, out_dtype=half, use_fast_accum=fast)

        try:
            times[name] = seconds_each([lambda p=p: launch(p) for p in products])
        except RuntimeError as error:
            print(f"{name}: {str(error).splitlines()[0][:120]}")
    return times


def time_products(kernels: dict) -> None:
    print(f"\n{TOKENS} rows: microseconds (TFLOP/s)")
    for model, (hidden, up) in MODELS.items():
        for label, columns, inner, epilogue in (
            ("qkv", 3 * hidden, hidden, EPILOGUES[0]), ("out", hidden, hidden, EPILOGUES[0]),
            ("up", up, hidden, EPILOGUES[1]), ("down", hidden, up, EPILOGUES[0]),
        ):  # fmt: skip
            sets = min(8, rotation(TOKENS * (columns + inner)))
            work = 2 * TOKENS * columns * inner
            shown = library_times(TOKENS, columns, inner, sets)
            products = [Product(TOKENS, columns, inner) for _ in range(sets)]
            for name in CONFIGS:
                kernel = kernels[name, *epilogue]
                outputs = [
                    torch.empty((TOKENS, columns), device="cuda", dtype=TYPES[epilogue[1]])
                    for _ in range(sets)
                ]
                shown[name] = seconds_each(
                    [lambda p=p, k=kernel, d=d: p.run(k, d) for p, d in zip(products, outputs)]
                )
            cells = [f"{n} {s * 1e6:.0f} ({work / s / 1e12:.0f})" for n, s in shown.items()]
            print(f"{model} {label}, {epilogue[0]} to {epilogue[1]}:", "; ".join(cells), flush=True)


def time_norm(compiler: Compiler) -> None:
    plain = Kernels(compiler, "norm.cu", "F16")
    twice = Kernels(compiler, "norm.cu", "F16", "-DFP8_OUTPUT=1")
    blocks = 16 * torch.cuda.get_device_properties(0).multi_processor_count
    columns = 1024
    gain = torch.ones(columns, device="cuda")

    def seconds(kernels: Kernels, e4m3: bool) -> float:
        def launch():
            x, y, output = (torch.randn((TOKENS, columns), device="cuda").half() for _ in range(3))
            operand = torch.empty((TOKENS, columns), device="cuda", dtype=E4M3) if e4m3 else None
            return lambda: kernels.launch(
                "vecmill_add_norm_1024", blocks, 128,
                x, y, gain, gain, output, operand, TOKENS, columns, EPSILON, 0,
            )  # fmt: skip

        return seconds_each([launch() for _ in range(3)])

    pair = seconds(plain, False), seconds(twice, True)
    print(f"add_norm {TOKENS} x {columns}: %.1f us, with e4m3 %.1f us" % tuple(t * 1e6 for t in pair))


def main() -> int:
    torch.manual_seed(1)
    torch.zeros(1, device="cuda")
    report, compiler = Report(), Compiler(None)
    check_norm(report, compiler)
    check_attention(report, compiler)
    kernels = compiled()
    check_products(report, kernels)
    print(f"{'kernel':28} {'type':5} cases error/bound  worst case")
    for (name, kind), (cases, worst, where) in report.errors.items():
        print(f"{name:28} {kind:5} {cases:5} {worst:11.3f}  {where}")
    print(f"{report.checks} checks, {report.failures} failed", flush=True)
    time_norm(compiler)
    time_products(kernels)
    return min(report.failures, 1)


if __name__ == "__main__":
    sys.exit(main())
