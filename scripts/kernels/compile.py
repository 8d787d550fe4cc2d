"""Compiles the CUDA backend's kernels with NVRTC for every architecture and type, without a GPU,
and prints what each kernel takes: registers, spilled bytes, shared memory.

Needs libnvrtc and `cuobjdump`; both may be named, else they are looked for as the loader and the
shell do, and in CUDA_HOME.
"""

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "crates/backend-cuda/kernels"
TYPES = ("F16", "BF16", "F32")
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a")
# What stands between the prelude and a kernel file.
INCLUDED = {
    "norm.cu": ("moments.cuh",),
    "attention.cu": ("mma.cuh", "sequences.cuh", "softmax.cuh"),
    "attention_sm90.cu": ("mma.cuh", "hopper.cuh", "sequences.cuh", "softmax.cuh"),
    "attention_any.cu": ("sequences.cuh",),
}
# Head sizes that the attention kernels are compiled for here; any other is possible.
HEAD_SIZES = {
    "attention.cu": (16, 32, 64, 96, 128),
    "attention_sm90.cu": (32, 64),
    "attention_any.cu": (20, 64, 128),
}
LIBRARIES = ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12")


def source(file: str) -> str:
    """A kernel file as the backend hands it to the compiler, with what it needs in front of it."""
    return "\n".join(
        f'#line 1 "{name}"\n{(KERNELS / name).read_text()}'
        for name in ("prelude.cuh", *INCLUDED.get(file, ()), file)
    )


def variants(file: str, architecture: str, element: str) -> list[list[str]]:
    """The macros that a file is compiled with, once for each list; none where it has no kernels."""
    if file == "attention.cu" and (
        element == "F32" or (element == "BF16" and architecture == "sm_75")
    ):
        return []
    if file == "attention_sm90.cu" and (element == "F32" or architecture != "sm_90a"):
        return []
    return [[f"-DHEAD_SIZE={size}"] for size in HEAD_SIZES.get(file, ())] or [[]]


def options(architecture: str, element: str) -> list[str]:
    return ["--std=c++17", f"--gpu-architecture={architecture}", f"-DT_{element}"]


class Compiler:
    def __init__(self, library: str | None) -> None:
        self._nvrtc = load(library)

    def compile(self, text: str, name: str, arguments: list[str]) -> tuple[bytes, str]:
        """Machine code, and what the compiler had to say; the code is empty if it refused."""
        program = ctypes.c_void_p()
        self._check(
            "nvrtcCreateProgram",
            ctypes.byref(program), text.encode(), name.encode(), 0, None, None,
        )  # fmt: skip
        flags = (ctypes.c_char_p * len(arguments))(*(a.encode() for a in arguments))
        refused = self._nvrtc.nvrtcCompileProgram(program, len(arguments), flags)
        log = self._fetch(program, "nvrtcGetProgramLog").rstrip(b"\0").decode()
        code = b"" if refused else self._fetch(program, "nvrtcGetCUBIN")
        self._check("nvrtcDestroyProgram", ctypes.byref(program))
        return code, log

    def _fetch(self, program: ctypes.c_void_p, call: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(call + "Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(call, program, buffer)
        return buffer.raw

    def _check(self, call: str, *arguments: object) -> None:
        status = getattr(self._nvrtc, call)(*arguments)
        if status != 0:
            raise RuntimeError(f"{call} failed with status {status}")


def load(library: str | None) -> ctypes.CDLL:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    installed = [str(path) for path in sorted(Path(home).glob("lib*/libnvrtc.so*"))]
    names = [library] if library else [*LIBRARIES, *installed]
    for name in names:
        # NVRTC opens its built-in functions by name alone; from elsewhere than the loader's folders
        # it finds them only if they are there already.
        beside = Path(name).parent.glob("libnvrtc-builtins.so*") if "/" in name else ()
        try:
            for builtins in beside:
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise SystemExit(f"no NVRTC among {', '.join(names)}: name one with --nvrtc")


def resources(code: bytes, cuobjdump: str) -> list[tuple[str, int, int, int]]:
    """Name, registers, bytes of stack (spills and local arrays) and of shared memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    return [
        (name, int(registers), int(stack) + int(local), int(shared))
        for name, registers, stack, shared, local in rows
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvrtc", help="the library's path")
    parser.add_argument("--cuobjdump", help="the program's path")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("files", nargs="*", help="all of the kernels if none are named")
    arguments = parser.parse_args()
    compiler = Compiler(arguments.nvrtc)
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    cuobjdump = arguments.cuobjdump or shutil.which("cuobjdump") or f"{home}/bin/cuobjdump"
    failures = 0
    print(f"{'kernel':36} {'type':5} {'arch':7} registers stack shared")
    files = arguments.files or sorted(path.name for path in KERNELS.glob("*.cu"))
    for file, architecture, element in product(files, arguments.architectures, arguments.types):
        for macros in variants(file, architecture, element):
            flags = [*options(architecture, element), *macros]
            code, log = compiler.compile(source(file), file, flags)
            place = f"{element:5} {architecture:7}"
            if log:
                print(f"-- {file} {place} {' '.join(macros)}\n{log}")
            failures += not code
            for name, registers, stack, shared in resources(code, cuobjdump) if code else []:
                print(f"{name:36} {place} {registers:9} {stack:5} {shared:6} {' '.join(macros)}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
