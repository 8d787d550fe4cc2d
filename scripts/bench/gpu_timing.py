"""How the peers on the GPU are timed: as `vecmill-bench encode` times vecmill. Two batches in
flight, vectors copied to pinned host memory, the host's clock, from one batch's end to another's."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

IN_FLIGHT = 2
WARM_UP_S = 0.5
WINDOW_S = 0.4
WINDOWS = 5
LATENCY_RUNS = 300
LATENCY_WARM_UP = 50


class Running:
    """Batches in turn, two of them on the device."""

    def __init__(self, encode: Callable, batches: Sequence) -> None:
        self._encode, self._batches = encode, batches
        self._started: deque[tuple[int, torch.cuda.Event]] = deque()
        self._host: list[Tensor | None] = [None] * IN_FLIGHT
        self._count = 0

    def _start(self) -> None:
        batch, slot = self._batches[self._count % len(self._batches)], self._count % IN_FLIGHT
        vectors = self._encode(batch)
        if self._host[slot] is None:
            self._host[slot] = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        self._host[slot].copy_(vectors, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._started.append((sum(batch.lengths), event))
        self._count += 1

    def tokens_per_second(self, seconds: float) -> float:
        start, tokens = time.perf_counter(), 0
        while True:
            while len(self._started) < IN_FLIGHT:
                self._start()
            own, event = self._started.popleft()
            event.synchronize()
            tokens += own
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return tokens / elapsed


def windows(encode: Callable, batches: Sequence) -> list[float]:
    """Tokens per second in each window, after a warm-up."""
    running = Running(encode, batches)
    running.tokens_per_second(WARM_UP_S)
    rates = [running.tokens_per_second(WINDOW_S) for _ in range(WINDOWS)]
    torch.cuda.synchronize()
    return rates


def quick(encode: Callable, batches: Sequence) -> float:
    """A first idea of the tokens per second."""
    running = Running(encode, batches)
    running.tokens_per_second(0.1)
    rate = running.tokens_per_second(0.2)
    torch.cuda.synchronize()
    return rate


def rate_figures(rates: list[float]) -> dict:
    return {
        "tokens_per_second": statistics.median(rates),
        "slowest_window": min(rates),
        "fastest_window": max(rates),
        "windows": rates,
    }


def latency(once: Callable[[], object]) -> dict:
    """Milliseconds of work that ends with its result on the host."""
    samples = []
    for _ in range(LATENCY_WARM_UP + LATENCY_RUNS):
        start = time.perf_counter()
        once()
        samples.append((time.perf_counter() - start) * 1e3)
    samples = sorted(samples[LATENCY_WARM_UP:])
    p99 = samples[int(len(samples) * 0.99)]
    return {
        "runs": len(samples),
        "min_ms": samples[0],
        "p50_ms": statistics.median(samples),
        "p99_ms": p99,
    }
