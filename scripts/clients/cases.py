"""Runs named cases, prints one line for each and remembers which failed."""

import math
import traceback
from collections.abc import Callable, Sequence

TEXT = "a quick brown fox"
TOKENS = [101, 1037, 4248, 2829, 4419, 102]
DIMENSIONS = 384
ERROR_KEYS = {"message", "type", "param", "code"}


def run(cases: dict[str, Callable[[], None]]) -> int:
    """The number of cases that failed."""
    failures = 0
    for name, case in cases.items():
        try:
            case()
            print(f"ok    {name}", flush=True)
        except Exception as error:
            failures += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"FAIL  {name}: {reason[:300]} (line {where.lineno})", flush=True)
    print(f"{len(cases) - failures} of {len(cases)} passed")
    return failures


def expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise AssertionError(complaint)


def expect_close(a: Sequence[float], b: Sequence[float], tolerance: float) -> None:
    expect(len(a) == len(b), f"{len(a)} dimensions against {len(b)}")
    differences = [abs(x - y) for x, y in zip(a, b)]
    # The maximum alone could overlook a NaN.
    expect(all(d <= tolerance for d in differences), f"vectors differ by {max(differences)}")


def expect_unit(vector: Sequence[float]) -> None:
    length = math.hypot(*vector)
    expect(abs(length - 1) < 1e-4, f"length {length}")


def expect_error_body(error: object) -> None:
    expect(isinstance(error, dict) and ERROR_KEYS <= error.keys(), f"error body {error}")
    expect(isinstance(error["message"], str) and error["message"], f"message {error['message']!r}")
    expect(isinstance(error["type"], str) and error["type"], f"type {error['type']!r}")
    for key in ("param", "code"):
        expect(error[key] is None or isinstance(error[key], str), f"{key} {error[key]!r}")
