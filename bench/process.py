"""Starts a server, waits for its first response, and reads its memory and CPU time from /proc."""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
START_TIMEOUT = 30  # Seconds.
STOP_TIMEOUT = 20


class Missing(Exception):
    """Raised with the reason when a row cannot be measured here."""


class NotStarted(Missing):
    """A server that has exited at its start, or does not respond."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that is sent again and again; `is_expected` checks the body of its response."""

    path: str = "/"
    body: bytes | None = None  # JSON, sent by POST.
    is_expected: Callable[[bytes], bool] = bool

    def bytes(self):
        head = f"{'GET' if self.body is None else 'POST'} {self.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        if self.body is None:
            return f"{head}\r\n".encode()
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n".encode() + self.body


@dataclasses.dataclass
class Server:
    """A row: how to run a server, where $PORT stands for its port."""

    name: str
    command: list[str]
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    binary: pathlib.Path | None = None

    @property
    def is_own(self):
        return self.name.startswith("wasi-essentials")

    def start(self, request, prefix=()):
        """Starts the server; returns process, port, and seconds until the first response."""
        port = free_port()
        words = [*prefix, *(word.replace("$PORT", str(port)) for word in self.command)]
        settings = {name: value.replace("$PORT", str(port)) for name, value in self.env.items()}
        env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | settings
        started = time.perf_counter()
        # In a session of its own, so that its children end with it.
        process = subprocess.Popen(
            words, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            seconds = await_response(port, request, started, process)
        except BaseException:
            stop(process)
            say(f"{self.name}: {shlex.join(words)}")
            raise
        return process, port, seconds


def await_response(port, request, started, process=None):
    """Waits until `request` gets a 200; returns the seconds since `started`."""
    while not responds(port, request):
        if process and process.poll() is not None:
            raise NotStarted(f"exited with {process.returncode} at its start")
        if time.perf_counter() - started > START_TIMEOUT:
            raise NotStarted(f"no response with 200 within {START_TIMEOUT} s")
        time.sleep(0.0002)
    return time.perf_counter() - started


def responds(port, request):
    """Returns true if there is a response with status 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(request.bytes())
            return connection.recv(12).endswith(b" 200")
    except OSError:
        return False


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process):
    """Ends a process and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def family(process):
    """The directories in /proc of a process and its children."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        fields = after_name(stat)
        if str(process.pid) in (stat.parent.name, *fields[1:2]):
            yield stat.parent


def after_name(stat):
    """The fields of /proc/PID/stat from the third on; none if the process is gone."""
    return read(stat).rpartition(")")[2].split()


def read(file):
    try:
        return file.read_text()
    except OSError:
        return ""


def memory(process):
    """Resident bytes of a process and its children; a page that several share counts once."""
    sizes = (re.search(r"^Pss: +(\d+) kB", read(pid / "smaps_rollup"), re.MULTILINE) for pid in family(process))
    return sum(int(size[1]) * 1024 for size in sizes if size)


def cpu_seconds(process):
    """CPU time that a process and its children have taken, in user space and in the kernel."""
    stats = (after_name(pid / "stat") for pid in family(process))
    return sum(int(stat[11]) + int(stat[12]) for stat in stats if stat) / os.sysconf("SC_CLK_TCK")


def on_path(command):
    path = shutil.which(command)
    if path is None:
        raise Missing(f"no `{command}` on PATH")
    return path


def say(line):
    print(line, file=sys.stderr, flush=True)
