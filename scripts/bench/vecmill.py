"""Starts the vecmill server and talks to it with as little client in the way as possible."""

import base64
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

HOST = "127.0.0.1"
START_LIMIT_S = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def is_ready(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def wait_until_ready(process: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not is_ready(port):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"the server was not ready within {START_LIMIT_S} s")
        time.sleep(0.05)


@contextmanager
def server(binary: Path, *flags: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A running server that has loaded its model, and its port. Inherits our CPU affinity."""
    port = free_port()
    command = [str(binary), "serve", "--hostname", HOST, "--port", str(port), *flags]
    quiet = {**os.environ, "RUST_LOG": "warn"}
    process = subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(process, port)
        yield process, port
    finally:
        process.terminate()
        process.wait(timeout=60)


def version(binary: Path) -> str:
    return subprocess.run(
        [binary, "--version"], check=True, capture_output=True, text=True
    ).stdout.strip()


class Client:
    """Sends batches over kept-alive connections, one per request in flight."""

    def __init__(self, port: int, batch: int = 32, in_flight: int = 4) -> None:
        self._port = port
        self._batch = batch
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(in_flight)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if len(texts) <= self._batch:
            return self._post(texts)
        batches = [texts[i : i + self._batch] for i in range(0, len(texts), self._batch)]
        return np.concatenate(list(self._pool.map(self._post, batches)))

    def _post(self, texts: Sequence[str]) -> np.ndarray:
        status, reply = self.request({"input": texts, "model": "any", "encoding_format": "base64"})
        if status != 200:
            raise RuntimeError(f"status {status}: {reply}")
        vectors = (base64.b64decode(row["embedding"]) for row in reply["data"])
        return np.stack([np.frombuffer(vector, "<f4") for vector in vectors])

    def request(self, body: dict) -> tuple[int, dict]:
        connection = self._connection()
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/embeddings", json.dumps(body).encode(), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def _connection(self) -> HTTPConnection:
        if not hasattr(self._local, "connection"):
            self._local.connection = HTTPConnection(HOST, self._port, timeout=600)
        return self._local.connection
