"""A vecmill server under test: how it is started, limited, looked at and stopped."""

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from client import HOST

START_S = 120.0
STOP_S = 90.0
MIB = 1 << 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen
    port: int
    log: int | None = None  # the reading end of its standard error, where nobody else reads it
    cgroup: Path | None = None

    def close_log(self) -> None:
        """Nobody reads the log from here on."""
        if self.log is not None:
            os.close(self.log)
            self.log = None

    def get(self, path: str, patience: float = 30.0) -> tuple[int, bytes]:
        return self.request("GET", path, None, patience)

    def post(self, path: str, body: object, patience: float = 120.0) -> tuple[int, bytes]:
        return self.request("POST", path, json.dumps(body).encode(), patience)

    def request(
        self, method: str, path: str, body: bytes | None, patience: float
    ) -> tuple[int, bytes]:
        """Status and body; 0 where nothing came back."""
        connection = HTTPConnection(HOST, self.port, timeout=patience)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, HTTPException) as error:
            return 0, str(error).encode()
        finally:
            connection.close()

    def embed(self, texts: list[str]) -> list[list[float]]:
        status, body = self.post("/v1/embeddings", {"model": "m", "input": texts})
        if status != 200:
            raise SystemExit(f"status {status}: {body[:300]!r}")
        return [row["embedding"] for row in json.loads(body)["data"]]

    def status_bytes(self, name: str) -> int:
        """A line of the process's status in bytes; 0 once it has ended."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return int(lines.get(name, "0 kB").split()[0]) * 1024

    def peak_bytes(self) -> int:
        return self.status_bytes("VmHWM")

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while self.get("/ready", 5.0)[0] != 200:
            if not self.is_alive():
                raise SystemExit(f"the server ended with status {self.process.returncode}")
            if time.monotonic() > deadline:
                raise SystemExit(f"the server was not ready within {START_S:.0f} s")
            time.sleep(0.05)

    def stop(self) -> int | None:
        """Asks it to stop, and waits for that."""
        if self.is_alive():
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int | None:
        """Its exit status; None where it had to be killed."""
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


def cgroup_with_limit(limit: int) -> Path | None:
    """A control group for so many bytes of memory, where this process may make one."""
    for base, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = base / f"vecmill-chaos-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit))
            return group
        except OSError:
            group.rmdir()
    return None


@contextmanager
def serving(
    binary: Path,
    model: Path,
    *flags: str,
    stderr: object = subprocess.DEVNULL,
    unread_log: bool = False,
    memory_limit: int | None = None,
    environment: dict[str, str] | None = None,
    wait: bool = True,
):
    """A server that has loaded its model."""
    port = free_port()
    command = [str(binary), "serve", "--hostname", HOST, "--port", str(port)]
    command += ["--model-id", str(model), *flags]
    log = None
    if unread_log:
        log, stderr = os.pipe()
    group = cgroup_with_limit(memory_limit) if memory_limit else None

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text("0")

    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        preexec_fn=enter,  # noqa: PLW1509 - it only writes one file
    )
    if unread_log:
        os.close(stderr)
    server = Server(process, port, log, group)
    try:
        if wait:
            server.wait_until_ready()
        yield server
    finally:
        server.stop()
        server.close_log()
        if group is not None:
            group.rmdir()
