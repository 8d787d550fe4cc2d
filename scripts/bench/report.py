"""What every result file says about where it came from, and how the plots look."""

import datetime
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK = "#33415c"
COLOURS = ("#e07a3f", "#5b7db1", "#9db4d3", "#8a8f98")


def cpu_model() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))


def vector_extensions() -> list[str]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in info if line.startswith("flags")).split()
    return [flag for flag in flags if flag.startswith(("avx", "amx", "fma"))]


def provenance(*packages: str) -> dict:
    """The command, the machine, the date and the versions behind a figure."""
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "vector_extensions": vector_extensions(),
        "cores": sorted(os.sched_getaffinity(0)),
        "load_average_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def new_plot(width: float, height: float, panels: int = 1) -> tuple[plt.Figure, list[plt.Axes]]:
    plt.rcParams.update(
        {
            "font.size": 10,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "vecmill",
        }
    )
    figure, axes = plt.subplots(1, panels, figsize=(width, height), squeeze=False)
    return figure, list(axes[0])


def save_plot(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
