"""Compiles and launches crates/backend-cuda/kernels/gemm_sm90.cu: configurations, NVRTC, tensor
maps and launches through ctypes, so that it runs what the Rust side runs.

Parts: `CONFIGS`, `compile_cubin` (needs NVRTC alone), `Kernel` (needs a device and torch); the last
two also serve other kernels, as `HopperKernel`.
"""

import ctypes
import glob
import os
import site
import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "crates/backend-cuda/kernels"
SOURCES = ("prelude.cuh", "moments.cuh", "hopper.cuh", "gemm_sm90_tiles.cuh",
           "gemm_sm90_epilogue.cuh", "gemm_sm90_norm.cuh", "gemm_sm90.cu")
BLOCK = 384

DEFAULTS = dict(ROW_BLOCKS=2, TILE_COLUMNS=192, PING_PONG=1, STAGES=4, SLOTS=2, CLUSTER_ROWS=1,
                CLUSTER_COLUMNS=1, RESIDENT=0, NORM=0, DEFERRED=0, FP8=0, FP8_OUTPUT=0)


def config(**macros):
    return {**DEFAULTS, **macros}


# Named by mode (pp: ping-pong, co: cooperative, res: resident W), tile and cluster, rows x columns.
CONFIGS = {
    "pp128x192": config(),
    "pp128x192c2x1": config(CLUSTER_ROWS=2),
    "pp128x192c2x1s5": config(CLUSTER_ROWS=2, STAGES=5, SLOTS=1),
    "pp128x192c1x2": config(CLUSTER_COLUMNS=2),
    "pp128x192c2x2": config(CLUSTER_ROWS=2, CLUSTER_COLUMNS=2),
    "pp128x128c2x1": config(TILE_COLUMNS=128, STAGES=5, CLUSTER_ROWS=2),
    "pp64x256c2x1": config(ROW_BLOCKS=1, TILE_COLUMNS=256, CLUSTER_ROWS=2),
    "res128x192": config(RESIDENT=6, STAGES=3),
    "co128x256": config(ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, SLOTS=1),
    "co128x256c2x1": config(ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, CLUSTER_ROWS=2, SLOTS=1),
    "co128x256c1x2": config(ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, CLUSTER_COLUMNS=2, SLOTS=1),
    "co256x128": config(TILE_COLUMNS=128, PING_PONG=0, SLOTS=1),
    "co256x128c2x1": config(TILE_COLUMNS=128, PING_PONG=0, CLUSTER_ROWS=2, SLOTS=1),
    "co256x128c1x2": config(TILE_COLUMNS=128, PING_PONG=0, CLUSTER_COLUMNS=2, SLOTS=1),
    "co256x192": config(PING_PONG=0, STAGES=3),
    "co256x192c2x1": config(PING_PONG=0, STAGES=3, CLUSTER_ROWS=2),
    "co128x256c2x2": config(ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, CLUSTER_ROWS=2, CLUSTER_COLUMNS=2, SLOTS=1),
    "co256x192c1x2": config(PING_PONG=0, STAGES=3, CLUSTER_COLUMNS=2),
    "co128x64": config(ROW_BLOCKS=1, TILE_COLUMNS=64, PING_PONG=0, STAGES=6, SLOTS=1),
}
NORM_CONFIGS = {
    "n384:pp128x192c1x2": config(NORM=1, CLUSTER_COLUMNS=2),
    "n384:pp64x192c1x2": config(NORM=1, ROW_BLOCKS=1, STAGES=5, SLOTS=3, CLUSTER_COLUMNS=2),
    "n384:pp64x192c2x2": config(NORM=1, ROW_BLOCKS=1, STAGES=5, SLOTS=3, CLUSTER_ROWS=2, CLUSTER_COLUMNS=2),
    "n384:co128x192c1x2": config(NORM=1, ROW_BLOCKS=1, PING_PONG=0, SLOTS=1, CLUSTER_COLUMNS=2),
    "n768:pp128x192c1x4": config(NORM=1, SLOTS=1, CLUSTER_COLUMNS=4),
    "n768:pp64x192c1x4": config(NORM=1, ROW_BLOCKS=1, SLOTS=3, CLUSTER_COLUMNS=4),
    "n768:co128x192c1x4": config(NORM=1, ROW_BLOCKS=1, PING_PONG=0, SLOTS=1, CLUSTER_COLUMNS=4),
    "n1024:co128x256c1x4": config(NORM=1, ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, STAGES=3, CLUSTER_COLUMNS=4),
    "n768:pp128x192c2x4": config(NORM=1, SLOTS=1, CLUSTER_ROWS=2, CLUSTER_COLUMNS=4),
    "n768:pp64x192c2x4": config(NORM=1, ROW_BLOCKS=1, SLOTS=3, CLUSTER_ROWS=2, CLUSTER_COLUMNS=4),
    "n1024:co128x256c2x4": config(NORM=1, ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, STAGES=3, CLUSTER_ROWS=2, CLUSTER_COLUMNS=4),
    "n1024:co128x256c2x4s4": config(NORM=1, ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, SLOTS=1, CLUSTER_ROWS=2, CLUSTER_COLUMNS=4),
    "n768:co128x192c2x4": config(NORM=1, ROW_BLOCKS=1, PING_PONG=0, SLOTS=1, CLUSTER_ROWS=2, CLUSTER_COLUMNS=4),
    "n1024:pp64x256c2x4": config(NORM=1, ROW_BLOCKS=1, TILE_COLUMNS=256, STAGES=4, CLUSTER_ROWS=2, CLUSTER_COLUMNS=4),
    "n1024:pp64x256c1x4": config(NORM=1, ROW_BLOCKS=1, TILE_COLUMNS=256, STAGES=4, CLUSTER_COLUMNS=4),
}

# Read rows whose normalisation is deferred ("d", by their columns), or write such ("s": sums), with a
# residual that is one too ("ds").
DEFER_CONFIGS = {
    "d:pp128x192": config(DEFERRED=1),
    "d:pp128x192c2x1": config(DEFERRED=1, CLUSTER_ROWS=2),
    "s768:pp128x192": config(NORM=2, SLOTS=3),
    "ds768:pp128x192": config(NORM=2, DEFERRED=1, SLOTS=3),
    "ds768:pp128x192c2x1": config(NORM=2, DEFERRED=1, SLOTS=3, CLUSTER_ROWS=2),
    "ds768:co256x192c2x1": config(NORM=2, DEFERRED=1, PING_PONG=0, STAGES=3, SLOTS=2, CLUSTER_ROWS=2),
    "s1024:co128x256c1x2": config(NORM=2, ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, STAGES=3, SLOTS=4, CLUSTER_COLUMNS=2),
    "ds1024:pp64x256c2x1": config(NORM=2, DEFERRED=1, ROW_BLOCKS=1, TILE_COLUMNS=256, SLOTS=2, CLUSTER_ROWS=2),
    "ds1024:co128x256c1x2": config(NORM=2, DEFERRED=1, ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, STAGES=3, SLOTS=4, CLUSTER_COLUMNS=2),
    "ds1024:co128x256c2x1": config(NORM=2, DEFERRED=1, ROW_BLOCKS=1, TILE_COLUMNS=256, PING_PONG=0, STAGES=3, SLOTS=4, CLUSTER_ROWS=2),
}


def tile_rows(c):
    return 64 * c["ROW_BLOCKS"] * (1 if c["PING_PONG"] else 2)


def shared_bytes(c):
    """The same sum as SHARED_BYTES in the kernel."""
    group_rows = 64 * c["ROW_BLOCKS"]
    w = c["TILE_COLUMNS"] * 128
    stage = tile_rows(c) * 128 + (0 if c["RESIDENT"] else w)
    exchange = c["NORM"] == 1 and c["CLUSTER_COLUMNS"] > 1
    total = c["STAGES"] * stage + c["RESIDENT"] * w + 8 * c["SLOTS"] * (1024 if c["FP8_OUTPUT"] else 2048)
    total += 4 * group_rows * c["CLUSTER_COLUMNS"] * 8 if exchange else 0
    deferred = c["DEFERRED"]
    vectors = (1 + (c["FP8"] or deferred), 3, 2 + 2 * deferred)[c["NORM"]]
    total += 2 * (4 * vectors * c["TILE_COLUMNS"] + 32 * deferred * tile_rows(c))
    barriers = 2 * c["STAGES"] + c["RESIDENT"] + 1 + 2 + (8 * c["SLOTS"] if c["NORM"] else 0) + 4 + 4
    return total + 8 * barriers + 1024


def library(pattern, *folders):
    """The first shared library found: by name, beside Python's packages, in the toolkit."""
    places = [p + "/nvidia/*/lib" for p in site.getsitepackages()] + ["/usr/local/cuda*/lib64", *folders]
    for place in places:
        for path in sorted(glob.glob(f"{place}/{pattern}"), reverse=True):
            return path
    raise SystemExit(f"no {pattern} in {places}")


def compile_cubin(c, epilogue="IDENTITY", type_macro="T_F16", sources=SOURCES):
    path = os.environ.get("NVRTC") or library("libnvrtc.so.*")
    for builtins in glob.glob(os.path.dirname(path) + "/libnvrtc-builtins.so.*"):
        ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(path)
    source = "".join((KERNELS / f).read_text() for f in sources)
    options = ["--std=c++17", "--gpu-architecture=sm_90a", "--ptxas-options=-v", f"-D{type_macro}",
               f"-DEPILOGUE={epilogue}", *(f"-D{k}={v}" for k, v in c.items())]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), sources[-1].encode(), 0, None, None)
    arguments = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    code = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if code:
        raise SystemExit(f"NVRTC {code}: {log.value.decode()}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return cubin.raw, log.value.decode()


class LaunchAttribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("dimensions", ctypes.c_uint * 16)]


class LaunchConfig(ctypes.Structure):
    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
                ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(LaunchAttribute)),
                ("count", ctypes.c_uint)]


class HopperKernel:
    """A loaded kernel whose matrices are tensor maps. Make it after torch has made its context."""

    def __init__(self, name, cubin, type_macro, block, shared, cluster):
        self.data_type = {"T_F16": 6, "T_BF16": 9}[type_macro]
        self.block, self.shared, self.cluster = block, shared, cluster
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(self.module), cubin)
        self.call("cuModuleGetFunction", ctypes.byref(self.function), self.module, name)
        self.call("cuFuncSetAttribute", self.function, 8, self.shared)
        self.resident_clusters = self.max_clusters()
        self.maps = {}

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: CUDA error {code}")

    def max_clusters(self):
        attribute = LaunchAttribute(4, 0, (ctypes.c_uint * 16)(self.cluster, 1, 1))
        launch = LaunchConfig((ctypes.c_uint * 3)(1056, 1, 1), (ctypes.c_uint * 3)(self.block, 1, 1),
                              self.shared, None, ctypes.pointer(attribute), 1)
        count = ctypes.c_int()
        self.call("cuOccupancyMaxActiveClusters", ctypes.byref(count), self.function, ctypes.byref(launch))
        return count.value

    def map(self, tensor, rows, columns, box_rows, box_bytes=128):
        key = (tensor.data_ptr(), rows, columns, box_rows)
        if key not in self.maps:
            memory = ctypes.create_string_buffer(192)
            start = (ctypes.addressof(memory) + 63) // 64 * 64
            size = tensor.element_size()
            data_type = self.data_type if size == 2 else 0  # bytes
            swizzle = {64: 2, 128: 3}[box_bytes]
            self.call("cuTensorMapEncodeTiled", ctypes.c_void_p(start), data_type, 2,
                      ctypes.c_void_p(tensor.data_ptr()), (ctypes.c_uint64 * 2)(columns, rows),
                      (ctypes.c_uint64 * 1)(columns * size),
                      (ctypes.c_uint32 * 2)(box_bytes // size, box_rows),
                      (ctypes.c_uint32 * 2)(1, 1), 0, swizzle, 3, 0)
            self.maps[key] = (memory, start)
        return self.maps[key][1]

    def launch(self, clusters, maps, scalars, stream):
        pointers = maps + [ctypes.addressof(s) for s in scalars]
        arguments = (ctypes.c_void_p * len(pointers))(*pointers)
        self.call("cuLaunchKernel", self.function, clusters * self.cluster, 1, 1, self.block, 1, 1,
                  self.shared, ctypes.c_void_p(stream), arguments, None)


class Kernel(HopperKernel):
    """One configuration of gemm_sm90.cu."""

    def __init__(self, c, cubin, type_macro="T_F16"):
        self.c = c
        name = (b"vecmill_gemm_sm90", b"vecmill_gemm_norm_sm90", b"vecmill_gemm_defer_sm90")[c["NORM"]]
        super().__init__(name, cubin, type_macro, BLOCK, shared_bytes(c),
                         c["CLUSTER_ROWS"] * c["CLUSTER_COLUMNS"])

    def __call__(self, a, w, bias, d, rows, stream, residual=None, gain=None, beta=None,
                 output_moments=None, moments=None, residual_gain=None, residual_beta=None,
                 epsilon=1e-12, most_clusters=None, backwards=0):
        c = self.c
        columns, inner = w.shape
        tall, wide = tile_rows(c) * c["CLUSTER_ROWS"], c["TILE_COLUMNS"] * c["CLUSTER_COLUMNS"]
        clusters = min(-(-rows // tall) * -(-columns // wide), self.resident_clusters,
                       most_clusters or self.resident_clusters)
        share = c["TILE_COLUMNS"] // c["CLUSTER_ROWS"]
        maps = [self.map(a, rows, inner, tile_rows(c) // c["CLUSTER_COLUMNS"]),
                self.map(w, columns, inner, share // 2 if share > 256 else share),
                self.map(d, rows, columns, 16, 64 * d.element_size())]
        if c["NORM"]:
            maps.append(self.map(residual, rows, columns, 16))
        vectors = {0: [bias], 1: [bias, gain, beta],
                   2: [bias, gain, output_moments, moments, residual_gain, residual_beta]}[c["NORM"]]
        scalars = [ctypes.c_void_p(None if v is None else v.data_ptr()) for v in vectors]
        sizes = [ctypes.c_uint32(x) for x in (rows, columns, inner, backwards)]
        if c["NORM"]:
            scalars += [ctypes.c_float(epsilon), *sizes]
        else:
            scalars += [*sizes, ctypes.c_void_p(None if moments is None else moments.data_ptr()),
                        ctypes.c_float(epsilon)]
        self.launch(clusters, maps, scalars, stream)


def child(script, mode, argument, limit):
    """Runs a part of a script in a process of its own: (exit status, or "hang"; what it printed).
    All of that goes to a file in $LOGS, too, if that is set."""
    command = [sys.executable, script, "--child", mode, str(argument)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        status = "hang"
    if "LOGS" in os.environ:
        name = f"{Path(script).stem}-{mode}-{argument}.txt".replace(":", "_")
        Path(os.environ["LOGS"], name).write_text(output)
    return status, output
