"""Loads a server: with wrk, one thread and connections that are kept alive, or with clients of server-sent events."""

import http.client
import os
import re
import selectors
import socket
import statistics
import subprocess
import time

from process import ROOT, Missing, cpu_seconds, memory, stop

WARM_UP = 1  # Seconds.
SCALE = (  # Case, connections, prefix of the command, and the figure that shows how it scales.
    ("1 connection", 1, [], "requests_per_second"),
    ("32 connections", 32, [], "requests_per_second"),
    ("1,000 connections", 1000, [], "requests_per_second"),
    ("one core", 32, ["taskset", "--cpu-list", "0"], "cpu_us"),
    ("all cores", 32, [], "cpu_us"),
)
EVENT_CLIENTS = 1000
EVENT_INTERVAL = 0.25  # Seconds, as in examples/stream.rs and its twins.


def measure(server, request, arguments):
    """One round: the figures of a server, by name."""
    process, port, _ = server.start(request)
    try:
        check(port, request)
        idle = memory(process)
        wrk(process, port, request, arguments.connections, WARM_UP)
        figures = wrk(process, port, request, arguments.connections, arguments.seconds)
    finally:
        stop(process)
    return figures | {"idle_bytes": idle}


def start(server, request):
    """The time of a start in milliseconds."""
    process, _, seconds = server.start(request)
    stop(process)
    return seconds * 1000


def scale(server, request, arguments):
    """One round: a figure of a server for each case of SCALE."""
    figures = {}
    for case, connections, prefix, figure in SCALE:
        process, port, _ = server.start(request, prefix)
        try:
            wrk(process, port, request, connections, WARM_UP)
            figures[case] = wrk(process, port, request, connections, arguments.seconds)[figure]
        finally:
            stop(process)
    return figures


def check(port, request):
    """Compares the whole response with what the request expects."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    method, fields = ("GET", {}) if request.body is None else ("POST", {"Content-Type": "application/json"})
    try:
        connection.request(method, request.path, request.body, fields)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Missing(f"{method} {request.path}: no response: {error!r}") from None
    finally:
        connection.close()
    if response.status != 200 or not request.is_expected(body):
        raise Missing(f"{method} {request.path}: unexpected response: {response.status} {body[:60]!r}")


def wrk(process, port, request, connections, seconds):
    """Figures of a run of wrk, by name; the memory is that at four fifths of its time."""
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    env = dict(os.environ)
    if request.body is not None:
        words += ["-s", str(ROOT / "bench" / "post.lua")]
        env["BODY"] = request.body.decode()
    cpu_before = cpu_seconds(process)
    words.append(f"http://127.0.0.1:{port}{request.path}")
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as client:
        time.sleep(seconds * 0.8)
        loaded = memory(process)
        output = client.communicate()[0]
    if client.returncode != 0 or "Non-2xx" in output or "Socket errors" in output:
        raise Missing(f"wrk: {failure(output)}")
    requests = int(re.search(r"(\d+) requests in", output)[1])
    return {
        "requests_per_second": float(re.search(r"Requests/sec: +([\d.]+)", output)[1]),
        "p50_ms": percentile(output, 50),
        "p99_ms": percentile(output, 99),
        "cpu_us": (cpu_seconds(process) - cpu_before) / max(requests, 1) * 1e6,
        "loaded_bytes": loaded,
    }


def failure(output):
    """The line of wrk's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines()]
    return next((line for line in lines if re.match("Non-2xx|Socket errors", line)), lines[-1] if lines else "no output")


def percentile(output, which):
    number, unit = re.search(rf"^ +{which}% +([\d.]+)(us|ms|s|m)$", output, re.MULTILINE).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


class EventClients:
    """Clients of server-sent events. An event's delay is the time beyond EVENT_INTERVAL since the one before it."""

    def __init__(self, port, request):
        self.port = port
        self.request = request.bytes().replace(b"close", b"keep-alive")
        self.selector = selectors.DefaultSelector()
        self.delays = []
        self.count = 0

    def open(self):
        client = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        client.sendall(self.request)
        client.setblocking(False)
        self.selector.register(client, selectors.EVENT_READ, [None])

    def run(self, until):
        """Receives events until then."""
        while (rest := until - time.perf_counter()) > 0:
            for key, _ in self.selector.select(rest):
                received = key.fileobj.recv(65536)
                now = time.perf_counter()
                last = key.data[0]
                if not received or (last is None and b" 200 " not in received[:16]):
                    raise Missing(f"a client received {received[:60]!r}")
                events = received.count(b"\n\n")
                if events and last is not None:
                    self.delays.append(max(now - last - EVENT_INTERVAL, 0) * 1000)
                if events or last is None:
                    key.data[0] = now
                self.count += events

    def close(self):
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()


def measure_events(server, request, arguments):
    """One round: the figures of a server that sends events to EVENT_CLIENTS clients."""
    process, port, _ = server.start(request)
    clients = EventClients(port, request)
    try:
        idle = memory(process)
        # Spread over an interval, so that the events are, too.
        begin = time.perf_counter()
        for number in range(EVENT_CLIENTS):
            clients.run(begin + number * EVENT_INTERVAL * 4 / EVENT_CLIENTS)
            clients.open()
        clients.run(time.perf_counter() + WARM_UP)
        clients.count, clients.delays = 0, []
        cpu_before, begin = cpu_seconds(process), time.perf_counter()
        clients.run(begin + arguments.seconds)
        seconds, cpu = time.perf_counter() - begin, cpu_seconds(process) - cpu_before
        loaded = memory(process)
    except OSError as error:
        raise Missing(f"clients of events: {error}") from None
    finally:
        clients.close()
        stop(process)
    if len(clients.delays) < 100:
        raise Missing(f"only {clients.count} events in {seconds:.0f} s")
    percentiles = statistics.quantiles(clients.delays, n=100)
    return {
        "events_per_second": clients.count / seconds,
        "p50_ms": percentiles[49],
        "p99_ms": percentiles[98],
        "cpu_us": cpu / clients.count * 1e6,
        "idle_bytes": idle,
        "loaded_bytes": loaded,
        "client_bytes": (loaded - idle) / EVENT_CLIENTS,
    }
