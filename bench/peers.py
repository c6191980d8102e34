"""The peers: other servers of the same component, and of the same service without one."""

import functools
import os
import platform
import re
import subprocess
import sys

from process import ROOT, Missing, Server, on_path, say

HERE = ROOT / "bench"
KEPT = ROOT / "target" / "bench"  # Where the builds leave what is measured.
# As much as the runtime keeps, or more.
RESIDENT = "pooling-memory-keep-resident=262144,pooling-table-keep-resident=262144,pooling-async-stack-keep-resident=65536"
FRESH = ("--max-instance-reuse-count", "1")
REUSED = ("--max-instance-reuse-count", "10000")


def wasmtime(name, wasm, is_resident=False, options=()):
    """`wasmtime serve`. With `is_resident`, tuned as its manual advises for fast instantiation: compiled ahead of time,
    the pooling allocator, and memory that stays resident."""
    path = on_path("wasmtime")
    file, tuning = wasm, []
    if is_resident:
        file = compiled_by_wasmtime(path, wasm)
        tuning = ["--allow-precompiled", "-O", f"pooling-allocator=y,{RESIDENT}"]
    command = [path, "serve", "-Scli", *tuning, *options, "--addr", "127.0.0.1:$PORT", str(file)]
    return Server(name, command, binary=path)


def code_name(wasm):
    """The name of a component's machine code: its entry point, before its own name if it is not the service."""
    entry = "spin" if "spin" in wasm.parts else "wasi"
    return entry if wasm.stem == "wasi_essentials" else f"{entry}-{wasm.stem}"


@functools.cache
def compiled_by_wasmtime(path, wasm):
    KEPT.mkdir(parents=True, exist_ok=True)
    output = KEPT / f"wasmtime-{code_name(wasm)}.cwasm"
    command = [path, "compile", str(wasm), "-o", str(output)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"`wasmtime compile` fails: {(done.stderr.strip().splitlines() or ['no output'])[0]}")
    return output


def spin(name, options=()):
    path = on_path("spin")
    spin_build(path)
    return Server(name, [path, "up", "--quiet", *options, "--listen", "127.0.0.1:$PORT"], binary=path)


@functools.cache
def spin_build(path):
    if subprocess.run([path, "build"], check=False, cwd=ROOT).returncode != 0:
        raise Missing("`spin build` fails")


def node(name, is_cluster=False):
    env = {"PORT": "$PORT", "WORKERS": str(os.cpu_count() if is_cluster else 0), "NODE_ENV": "production"}
    return Server(name, [on_path("node"), str(HERE / "node.mjs")], env)


@functools.cache
def python():
    """A virtual environment with Flask and gunicorn; returns its directory of commands."""
    directory = KEPT / "python"
    if not (directory / "bin" / "gunicorn").exists():
        say("installing Flask and gunicorn")
        install = [directory / "bin" / "pip", "install", "--quiet", "flask==2.3.3", "gunicorn==23.0.0"]
        for command in ([sys.executable, "-m", "venv", directory], install):
            if subprocess.run(command, check=False).returncode != 0:
                raise Missing("Flask and gunicorn cannot be installed from PyPI")
    return directory / "bin"


NO_CACHE = {"PYTHONDONTWRITEBYTECODE": "1"}


def flask(name):
    app = ["--app", str(HERE / "flask_app.py"), "run", "--port", "$PORT"]
    return Server(name, [str(python() / "flask"), *app], NO_CACHE)


def gunicorn(name):
    """With as many workers as its manual recommends."""
    workers = str(2 * os.cpu_count() + 1)
    app = ["--chdir", str(HERE), "--workers", workers, "--bind", "127.0.0.1:$PORT", "flask_app:app"]
    return Server(name, [str(python() / "gunicorn"), *app], NO_CACHE)


def versions():
    """The version of each part that is here, by name."""
    lock = (ROOT / "Cargo.lock").read_text()
    names = ("server", "wasmtime", "hyper")
    own, wasmtime, hyper = (re.search(rf'name = "{name}"\nversion = "(.*)"', lock)[1] for name in names)
    packages = output_of(KEPT / "python" / "bin" / "pip", "list", "--format", "freeze").splitlines()
    packages = [package for package in packages if package.lower().startswith(("flask=", "gunicorn=", "werkzeug="))]
    versions = {
        "wasi-essentials": f"{own} on Wasmtime {wasmtime}, commit {output_of('git', 'rev-parse', '--short', 'HEAD')}",
        "hyper": hyper,
        "wasmtime serve": output_of("wasmtime", "--version"),
        "spin up": output_of("spin", "--version"),
        "Node.js": output_of("node", "--version"),
        "Flask and gunicorn": ", ".join([*packages, f"Python {platform.python_version()}"]) if packages else "",
        "Docker": output_of("docker", "version", "--format", "{{.Server.Version}}"),
        "wrk": output_of("wrk", "--version").partition(" Copyright")[0],
    }
    return {name: version for name, version in versions.items() if version}


def output_of(*command):
    """What a command prints; nothing if it is not here."""
    try:
        done = subprocess.run(command, check=False, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()
