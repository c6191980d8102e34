"""The workloads and their servers. Builds the servers of this project."""

import dataclasses
import functools
import json
import pathlib
import platform
import shutil
import subprocess
import sys

from peers import FRESH, KEPT, REUSED, code_name, flask, gunicorn, node, spin, wasmtime
from process import ROOT, Missing, Request, Server, on_path, say

RELEASE = ROOT / "server" / "release"
WASM = ["env", "PROGRAM=component", RELEASE]
TARGET = f"{platform.machine()}-unknown-linux-musl"
LIMIT = "native hyper"
ITEMS = [{"id": n, "name": f"item {n}", "price": n * 1.25, "tags": ["a", "b"]} for n in range(14)]
JSON = json.dumps({"items": ITEMS, "note": ""}).encode()
JSON = JSON.replace(b'"note": ""', b'"note": "%s"' % (b"x" * (1024 - len(JSON))))  # 1 KiB.
# A sandbox or an instance for each client.
EVENTS = {"MAX_REQUESTS": "1010", "GUEST_MEMORY_TOTAL": "1GiB"}
EVENTS_WASMTIME = {"component-instances": 1010, "core-instances": 10_100, "memories": 1010, "tables": 10_100, "stacks": 1010}


@dataclasses.dataclass
class Workload:
    """A request, and the servers that respond to it; ratios are to the first one."""

    title: str
    request: Request
    servers: list[Server]


def workload(key, missing):
    """Builds a workload; a peer that is not there is added to `missing`, with the reason."""
    return {"hello": hello, "json": json_echo, "large": large, "javascript": javascript, "events": events}[key](missing)


def hello(missing):
    wasi, spin_wasm = component("wasi"), component("spin")
    peers = [
        (wasmtime, "wasmtime serve", wasi),
        (wasmtime, "wasmtime serve, resident", wasi, True),
        (wasmtime, "wasmtime serve, resident, reused", wasi, True, REUSED),
        (wasmtime, "wasmtime serve, WASI 0.3, resident", spin_wasm, True, FRESH),
        (wasmtime, "wasmtime serve, WASI 0.3, resident, reused", spin_wasm, True),
        (spin, "spin up, WASI 0.3, fresh", FRESH),
        (spin, "spin up, WASI 0.3"),
        (node, "Node.js, one process"),
        (node, "Node.js, cluster", True),
        (flask, "Flask, its own server"),
        (gunicorn, "Flask, gunicorn"),
    ]
    return Workload("`GET /`, 18 bytes", Request(), own_hello() + found(peers, missing))


def own_hello():
    """The runtime in each mode, with the component for each version of WASI, and the native twin."""
    wasi, spin_wasm = component("wasi"), component("spin")
    return [
        native(),
        runtime("wasi-essentials", wasi),
        runtime("wasi-essentials, access log on", wasi, ACCESS_LOG="on"),
        runtime("wasi-essentials, sandbox reused", wasi, **RUNTIME_REUSED),
        runtime("wasi-essentials, WASI 0.3", spin_wasm),
        runtime("wasi-essentials, WASI 0.3, sandbox reused", spin_wasm, **RUNTIME_REUSED),
    ]


def json_echo(missing):
    request = Request("/echo", JSON, lambda body: json.loads(body) == json.loads(JSON))
    return twins("`POST` of 1 KiB of JSON, parsed and sent back", request, example("echo"), missing)


def large(missing):
    request = Request("/large", is_expected=lambda body: len(body) == 1 << 20)
    workload = twins("`GET /large`, 1 MiB", request, example("service"), missing)
    workload.servers.insert(3, runtime("wasi-essentials, WASI 0.3", example("service", "spin")))
    return workload


def twins(title, request, wasm, missing):
    """A workload that a component of WASI 0.2 and every peer has."""
    reused = runtime("wasi-essentials, sandbox reused", wasm, **RUNTIME_REUSED)
    servers = [native(), runtime("wasi-essentials", wasm), reused]
    peers = [
        (wasmtime, "wasmtime serve, resident", wasm, True),
        (wasmtime, "wasmtime serve, resident, reused", wasm, True, REUSED),
        (node, "Node.js, one process"),
        (node, "Node.js, cluster", True),
        (gunicorn, "Flask, gunicorn"),
    ]
    return Workload(title, request, servers + found(peers, missing))


def javascript(missing):
    request = Request("/", b'{"name": "Ferris"}', lambda body: json.loads(body) == {"greeting": "Hello, Ferris!"})
    title = "`POST` of a name, JSON to JSON, in JavaScript"
    node_rows = found([(node, "Node.js, one process"), (node, "Node.js, cluster", True)], missing)
    try:
        app, reusable = javascript_component("app", "build"), javascript_component("reusable", "build:reusable")
    except Missing as reason:
        missing["wasi-essentials, JavaScript"] = str(reason)
        return Workload(title, request, node_rows)
    rows = [
        runtime("wasi-essentials, JavaScript", app),
        runtime("wasi-essentials, JavaScript, 16 MiB resident", app, GUEST_MEMORY_RESIDENT="16MiB"),
        runtime("wasi-essentials, JavaScript, sandbox reused", reusable, **RUNTIME_REUSED),
    ]
    # An instance of wasmtime serve is not reused here: the component that may be is another one.
    peers = [
        (wasmtime, "wasmtime serve, resident", app, True),
        (wasmtime, "wasmtime serve, 16 MiB resident", app, True, ("-O", "pooling-memory-keep-resident=16777216")),
    ]
    return Workload(title, request, node_rows + rows + found(peers, missing))


def events(missing):
    wasm = example("stream")
    room = ("-O", ",".join(f"pooling-total-{part}={count}" for part, count in EVENTS_WASMTIME.items()))
    peers = [(wasmtime, "wasmtime serve, resident", wasm, True, room), (node, "Node.js, one process")]
    title = "Server-sent events to 1,000 clients, to each one in 250 ms"
    servers = [native(), runtime("wasi-essentials", wasm, **EVENTS)]
    return Workload(title, Request("/events"), servers + found(peers, missing))


def found(peers, missing):
    """The peers that are there. Each is a function and its arguments, the first of which is the name."""
    servers = []
    for make, name, *arguments in peers:
        try:
            servers.append(make(name, *arguments))
        except Missing as reason:
            missing[name] = str(reason)
    return servers


# --- Ours


def build(command, cwd=ROOT):
    say(f"building: {' '.join(map(str, command))}")
    try:
        subprocess.run(command, cwd=cwd, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: cannot build: {error}")


@functools.cache
def binary(path):
    """The runtime or its native twin, as the image has it."""
    build([RELEASE, "--bin", "wasi-essentials", "--example", "native"])
    KEPT.mkdir(parents=True, exist_ok=True)
    built = ROOT / "target" / TARGET / "image"
    keep(symbols(built / "wasi-essentials"), "wasi-essentials.symbols")
    return keep(built / path, pathlib.Path(path).name)


def keep(program, name):
    """Copies a program to where no build replaces it; an earlier copy may still be running."""
    kept = KEPT / name
    kept.unlink(missing_ok=True)
    return shutil.copy(program, kept)


def symbols(program):
    """The program with symbols, for bench/instructions: server/linker leaves it beside the file that Cargo links."""
    for twin in (program.parent / "deps").glob("*.symbols"):
        linked = twin.with_suffix("")
        if linked.exists() and linked.samefile(program):
            return twin
    sys.exit(f"error: no symbols of {program}: build it by server/release")


@functools.cache
def component(entry, option="--lib", file="wasi_essentials.wasm"):
    """Builds the component for an entry point, as the image has it; returns its path."""
    target = "target" if entry == "wasi" else "target/spin"  # As spin.toml has it.
    features = [] if entry == "wasi" else ["--target-dir", target, "--no-default-features", "--features", entry]
    build([*WASM, *option.split(), *features])
    return ROOT / target / "wasm32-wasip2" / "image" / file


def example(name, entry="wasi"):
    return component(entry, f"--example {name}", f"examples/{name}.wasm")


def javascript_component(name, script):
    """Builds a component by the steps of docs/any-component.md, unless it is newer than its source."""
    directory = ROOT / "examples" / "javascript"
    source, wasm = directory / f"{name}.js", directory / f"{name}.wasm"
    if not wasm.exists() or wasm.stat().st_mtime < source.stat().st_mtime:
        npm = on_path("npm")
        for command in ([npm, "install", "--silent"], [npm, "run", "--silent", script]):
            say(f"building: {' '.join(command)}")
            if subprocess.run(command, check=False, cwd=directory).returncode != 0:
                raise Missing(f"`npm {' '.join(command[1:])}` fails")
    return wasm


@functools.cache
def machine_code(wasm):
    output = KEPT / f"{code_name(wasm)}.cwasm"
    build(["cargo", "run", "--locked", "--package", "server", "--", "compile", wasm, "-o", output])
    return output


RUNTIME_REUSED = {"REQUESTS_PER_SANDBOX": "10000"}


def native():
    return Server(LIMIT, [str(binary("examples/native")), "127.0.0.1:$PORT"], binary=binary("examples/native"))


def runtime(name, wasm, **settings):
    program = binary("wasi-essentials")
    command = [str(program), str(machine_code(wasm)), "--listen", "127.0.0.1:$PORT"]
    return Server(name, command, {"ACCESS_LOG": "off"} | settings, program)
