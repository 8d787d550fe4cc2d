#!/usr/bin/env python3
"""Fails each system call of a start, some requests and a stop in turn, and looks at what comes of it.

In the manner of SQLite's tests: `strace` makes the N-th call of a kind fail in each thread, for N from
1 until no call is left to fail (every one of the first, then a sample), from the start on and from
when a server is ready on. Whatever fails, the process must either not start and say why, or answer
each request, or visibly refuse or drop it; vectors must be right to the last bit; `vecmill embed` must
write the right file or say why not; and nothing may hang. Exit code 1 if anything else is seen.

    python3 scripts/chaos/inject.py --vecmill target/debug/vecmill [--only map] [--out results.md]

Needs strace and Linux. Talks to 127.0.0.1 only. Python's standard library only.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "testdata" / "models" / "bert-mean"
TEXTS = ["a quick brown fox", "jumps over", "the lazy dog"]

# What is failed with which errors: calls that are alike fail together. Of writes, only those to a file:
# others wake threads, and the system never lets those fail.
FAULTS = [
    ("log", "write,writev", "ENOSPC"),  # standard error
    ("results", "write,writev", "ENOSPC"),  # standard output
    ("results", "write,writev", "EPIPE"),
    ("send", "sendto,sendmsg,writev", "ECONNRESET"),
    ("read", "read,readv,pread64", "EIO"),
    ("receive", "recvfrom,recvmsg", "ECONNRESET"),
    ("open", "openat", "EMFILE"),
    ("open", "openat", "EACCES"),
    ("stat", "statx,newfstatat,fstat", "EIO"),
    ("spawn", "clone,clone3", "EAGAIN"),
    ("map", "mmap,mremap", "ENOMEM"),
    ("heap", "brk", 0),  # the system says no by an address
    ("protect", "mprotect,madvise", "ENOMEM"),
    ("folder", "mkdir,mkdirat,getdents64", "ENOSPC"),
    ("rename", "rename,renameat,renameat2,linkat,unlink,unlinkat", "EIO"),
    ("sync", "fsync,fdatasync,ftruncate", "EIO"),
    ("accept", "accept4", "EMFILE"),
    ("socket", "socket,bind,listen,setsockopt,getsockname", "ENOBUFS"),
    ("poll", "epoll_create1,epoll_ctl,eventfd2,socketpair", "ENOMEM"),
    ("control", "fcntl,ioctl,prlimit64,sched_getaffinity", "EINVAL"),
    ("random", "getrandom", "ENOSYS"),
]

EVERY = 8  # the first so many are all tried
STEP = 1.4  # then each is so much further
READY_SECONDS = 60
REPLY_SECONDS = 30
STOP_SECONDS = 50

GOOD = {"served", "dropped", "refused", "died", "written"}


def options(log, fault, nth, folder):
    """What to tell strace."""
    name, calls, error = fault
    only = {"log": ["-P", str(folder / "stderr")], "results": ["-P", str(folder / "stdout")]}
    answer = "retval=0" if error == 0 else f"error={error}"
    return ["-f", *only.get(name, []), "-o", str(log), "-e", f"trace={calls}",
            "-e", f"inject={calls}:{answer}:when={nth}"]


def under(told):
    """What a command is run by, from its first call on."""
    fast = [] if "-P" in told else ["--seccomp-bpf"]
    return ["strace", "-D", "-qq", *fast, *told] if told else []


def read(file):
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def injected(log):
    return read(log).count("(INJECTED)")


def environment(folder):
    return {"PATH": os.environ["PATH"], "VECMILL_DEVICE": "cpu", "VECMILL_CACHE": str(folder),
            "HOME": str(folder), "VECMILL_CPU_THREADS": "2"}


def ask(port, method, path, body=None):
    """The status and the bytes of a reply, or why there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REPLY_SECONDS)
    try:
        head = {"content-type": "application/json"} if body else {}
        connection.request(method, path, json.dumps(body) if body else None, head)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except TimeoutError:
        return "hang", b""
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, b""
    finally:
        connection.close()


def vectors(reply):
    return [item["embedding"] for item in json.loads(reply)["data"]]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server with a fault in it, from its start to its end."""

    def __init__(self, vecmill, told, folder):
        self.port = free_port()
        self.folder = folder
        self.stderr = open(folder / "stderr", "wb")
        command = [*under(told), vecmill, "serve", "--port", str(self.port), "--model-id", str(MODEL)]
        self.process = subprocess.Popen(command, env=environment(folder), stderr=self.stderr,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def ready(self):
        """Whether it became ready; not if it ended, and None if neither came."""
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                return False
            if ask(self.port, "GET", "/ready")[0] == 200:
                return True
            time.sleep(0.02)
        return None

    def attach(self, told):
        """Has strace look at it from now on."""
        command = ["strace", "-p", str(self.process.pid), *told]
        tracer = subprocess.Popen(command, stderr=open(self.folder / "tracer", "wb"))
        until = time.monotonic() + READY_SECONDS
        while "attached" not in read(self.folder / "tracer") and time.monotonic() < until:
            time.sleep(0.02)
        return tracer

    def stop(self):
        """Its exit code, negative for a signal; None if it doesn't end."""
        # What hears signals is woken by a system call too, once in each thread: those may be what fails.
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(5)
            except subprocess.TimeoutExpired:
                pass
        return None


def serve(vecmill, told, folder, expected):
    """What came of a server, in a word, and the details. `expected` are the right vectors."""
    server = Server(vecmill, told, folder)
    try:
        ready = server.ready()
        if ready is None:
            return "hangs at its start", ""
        if not ready:
            code = server.process.returncode
            said = (folder / "stderr").read_bytes()
            return ("refused" if code != 0 and said else "ends without a word"), f"exit {code}"
        return questions(server, expected)
    finally:
        end(server.process)


def ready(vecmill, told, folder, expected):
    """As `serve`, of a server that is ready when the first call fails."""
    server = Server(vecmill, [], folder)
    try:
        if not server.ready():
            return "not even ready", ""
        tracer = server.attach(told)
        try:
            return questions(server, expected)
        finally:
            end(server.process)
            tracer.wait()
    finally:
        end(server.process)


def end(process):
    if process.poll() is None:
        process.kill()
        process.wait()


def questions(server, expected):
    """What comes of requests and a stop."""
    statuses = collections.Counter()
    for _ in range(3):
        for path, body in [("/v1/embeddings", {"model": "m", "input": TEXTS}),
                           ("/embed", {"inputs": TEXTS[0]}), ("/tokenize", {"inputs": TEXTS[1]})]:
            status, reply = ask(server.port, "POST", path, body)
            statuses[str(status)] += 1
            if status == 200 and path == "/v1/embeddings" and expected is not None:
                if vectors(reply) != expected:
                    return "wrong vectors", path
        statuses[str(ask(server.port, "GET", "/metrics")[0])] += 1
    dead = server.process.poll() is not None
    code = server.stop()
    seen = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    seen = f"exit {code}; {seen}"
    if statuses["hang"] or code is None:
        return "hangs", seen
    if dead or code != 0:
        return ("died" if code != 0 else "ends without a word"), seen
    return ("served" if set(statuses) == {"200"} else "dropped"), seen


def embed(vecmill, told, folder, expected):
    """What came of `vecmill embed` into a file, in a word, and the details."""
    return command(vecmill, told, folder, expected, folder / "vectors.npy", ["-o", "vectors.npy"])


def pipe(vecmill, told, folder, expected):
    """What came of `vecmill embed` to standard output."""
    return command(vecmill, told, folder, expected, folder / "stdout", [])


def command(vecmill, told, folder, expected, target, arguments):
    command = [*under(told), vecmill, "embed", "--model-id", str(MODEL), *arguments, *TEXTS]
    with open(folder / "stderr", "wb") as stderr, open(folder / "stdout", "wb") as stdout:
        try:
            done = subprocess.run(command, env=environment(folder), stdin=subprocess.DEVNULL, cwd=folder,
                                  stderr=stderr, stdout=stdout, timeout=READY_SECONDS)
        except subprocess.TimeoutExpired:
            return "hangs", ""
    written = target.read_bytes() if target.exists() else None
    said = (folder / "stderr").read_bytes()
    seen = f"exit {done.returncode}"
    if done.returncode == 0:
        return ("written" if expected in (None, written) else "wrong file"), seen
    if written and (target.name != "stdout" and written != expected):
        return "wrong file", seen
    # A reader that is gone needs no words.
    return ("refused" if said or done.returncode == 141 else "ends without a word"), seen


def right_answers(vecmill):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        server = Server(vecmill, [], folder)
        assert server.ready(), "the server does not even start without a fault"
        status, reply = ask(server.port, "POST", "/v1/embeddings", {"model": "m", "input": TEXTS})
        assert (status, server.stop()) == (200, 0)
        assert embed(vecmill, [], folder, None)[0] == pipe(vecmill, [], folder, None)[0] == "written"
        files = (folder / "vectors.npy").read_bytes(), (folder / "stdout").read_bytes()
        right = vectors(reply)
        return [(serve, right), (ready, right), (embed, files[0]), (pipe, files[1])]


def one(vecmill, run, expected, fault, nth):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        log = folder / "strace"
        outcome, seen = run(vecmill, options(log, fault, nth, folder), folder, expected)
        # The tracer is not our child: it writes until the end of what it traces.
        until = time.monotonic() + 5
        while not injected(log) and "+++" not in read(log) and time.monotonic() < until:
            time.sleep(0.02)
        return outcome, seen, injected(log), read(folder / "stderr")


def places(run, fault):
    # The first mapping is the system's loader's: it ends by SIGSEGV without one.
    nth = 2 if fault[0] == "map" and run is not ready else 1
    while True:
        yield nth
        nth = nth + 1 if nth < EVERY else int(nth * STEP) + 1


def try_all(vecmill, run, expected, fault, most):
    """Outcomes by kind, and what must not be."""
    outcomes, faults, bad, idle = collections.Counter(), 0, [], 0
    for nth in places(run, fault):
        if nth > most or idle == 2:
            break
        outcome, seen, count, said = one(vecmill, run, expected, fault, nth)
        idle = 0 if count else idle + 1
        if count:
            faults += count
            outcomes[outcome] += 1
            if outcome not in GOOD:
                bad.append(f"{run.__name__}: {fault[0]} {fault[2]} at {nth}: {outcome} ({seen}) "
                           + " / ".join(said.strip().splitlines()[-2:]))
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    print(f"{run.__name__}: {fault[0]} {fault[2]}: {told or 'never called'}", file=sys.stderr, flush=True)
    for line in bad:
        print(f"  AMISS {line}", file=sys.stderr, flush=True)
    return outcomes, faults, bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--vecmill", default=str(ROOT / "target" / "debug" / "vecmill"))
    parser.add_argument("--only", help="one kind of fault, such as mmap's: map")
    parser.add_argument("--most", type=int, default=400, help="the last place to fail at")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, help="where to write the table")
    arguments = parser.parse_args()
    right = right_answers(arguments.vecmill)
    # Only writes of results are to standard output.
    work = [(run, expected, fault) for fault in FAULTS for run, expected in right
            if (run is pipe) == (fault[0] == "results") and arguments.only in (None, fault[0])]
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(
            lambda job: try_all(arguments.vecmill, *job, arguments.most), work))
    names = ["served", "written", "dropped", "refused", "died"]
    lines = ["| command | calls | error | runs | faults | " + " | ".join(names) + " | amiss |",
             "|---|---|---|" + "---|" * (len(names) + 3)]
    amiss, totals = [], collections.Counter()
    for (run, _, (name, _, error)), (outcomes, faults, bad) in zip(work, results):
        amiss += bad
        runs = sum(outcomes.values())
        totals.update(outcomes)
        totals.update({"runs": runs, "faults": faults, "amiss": len(bad)})
        cells = [run.__name__, name, error, runs, faults, *(outcomes[name] for name in names), len(bad)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    cells = ["all", "", "", totals["runs"], totals["faults"], *(totals[name] for name in names),
             totals["amiss"]]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
    table = "\n".join(lines) + f"\n\n{time.monotonic() - begun:.0f} s.\n"
    table += "".join(f"\n- {line}" for line in amiss) + ("\n" if amiss else "")
    print(table)
    if arguments.out:
        arguments.out.write_text(table)
    return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
