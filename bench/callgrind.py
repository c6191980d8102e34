"""What `bench/instructions` and `bench/decompose` share: a server that is sent one `GET /` after the other, and the
instructions that Valgrind's callgrind counts meanwhile, by function and by call.

Two runs with different numbers of requests are counted, and the difference is divided by that of the requests: what a
start, a first request and an end take is not in it. There is one connection, and the server takes turns with its client on
one CPU: how often it has to wait does not depend on the client's speed. Six such differences were within 0.1 % of each
other, and within 1 % with a CPU for the client.

callgrind names functions by the program's symbols, and the shipped program has none. server/linker links it a second
time with symbols, as NAME.symbols; `check_code` says if that has other code.
"""

import collections
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile

FEW, MANY = 200, 1200  # Requests; the first ones warm the server up.
# Valgrind gives a process 64 GiB of address space, of which each sandbox takes four.
SETTINGS = {"ACCESS_LOG": "off", "MAX_REQUESTS": "8"}
CPU = min(os.sched_getaffinity(0))
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: identity\r\n\r\n"
GUEST = "the guest's machine code"  # It has no symbols; all of it is one function here.
NO_SYMBOL = "without a symbol"
# callgrind counts each round of the instruction that they consist of, of which a CPU does many at a time.
BYTES = re.compile(r"mem(set|cpy|move)\b")


class Server:
    """A server that runs on one CPU, the client's, and a connection to it."""

    def __init__(self, prefix, program, env):
        os.sched_setaffinity(0, [CPU])  # And those of all children.
        self.process = subprocess.Popen(
            [*prefix, program, "--listen", "127.0.0.1:0"],
            env=os.environ | SETTINGS | env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if address is None:
            sys.exit(f"error: {program} does not say where it listens: {line!r}")
        self.connection = socket.create_connection(("127.0.0.1", int(address[1])), timeout=60)
        self.length = 0

    def get(self, requests):
        """Sends requests, one after the other, and receives their responses."""
        for _ in range(requests):
            self.connection.sendall(REQUEST)
            if self.length == 0:  # Every response is as long as the first one.
                response = self.connection.recv(4096)
                head, _, body = response.partition(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
                if length is None or int(length[1]) != len(body):
                    sys.exit(f"error: not a whole response: {response!r}")
                self.length = len(response)
            else:
                response = self.connection.recv(self.length, socket.MSG_WAITALL)
            if not response.startswith(b"HTTP/1.1 200 "):
                sys.exit(f"error: not a response with status 200: {response[:200]!r}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate()


@dataclasses.dataclass
class Profile:
    """Instructions per request."""

    own: dict[str, float]  # Of each function, without those that it calls.
    bytes: dict[str, float]  # Of these, those in memset and memcpy: callgrind takes some for a part of the caller.
    calls: dict[tuple[str, str], float]  # Calls of the second function by the first.
    inclusive: dict[tuple[str, str], float]  # The instructions of these calls.

    @property
    def total(self):
        return sum(self.own.values())

    @property
    def has_symbols(self):
        return self.own.get(NO_SYMBOL, 0) < self.total / 2


def count(program, env):
    """The profile of one request."""
    require("valgrind", "apt install valgrind")
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        for requests in (FEW, MANY):
            out = pathlib.Path(directory, str(requests))
            with Server(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"], program, env) as server:
                server.get(requests)
            runs.append(read(out))
    return Profile(*(per_request(*counters) for counters in zip(*runs, strict=True)))


def per_request(less, more):
    figures = {key: (more[key] - less[key]) / (MANY - FEW) for key in less.keys() | more.keys()}
    return {key: figure for key, figure in figures.items() if figure}


def read(path):
    """Counters of a file in callgrind's format (its manual, section "Callgrind Format Specification"): instructions by
    function, those of memset and memcpy, calls, and the instructions of calls."""
    own, of_bytes, calls, inclusive = (collections.Counter() for _ in range(4))
    names = {}

    def name(kind, text):
        """A name, which only its first use spells out."""
        number, _, spelled = text.partition(" ")
        if spelled:
            names[kind, number] = spelled
        return names[kind, number]

    lines = iter(path.read_text().splitlines())
    for line in lines:
        key, _, value = line.partition("=")
        if key == "ob":
            program = callee_program = name("object", value)
        elif key == "cob":
            callee_program = name("object", value)
        elif key in ("fl", "fi", "fe"):
            file = name("file", value)
            if key == "fl":
                function_file = file
        elif key in ("cfi", "cfl"):
            callee_file = name("file", value)
        elif key == "fn":
            function = identify(program, function_file, name("function", value))
            callee_file = function_file
        elif key == "cfn":
            callee = identify(callee_program, callee_file, name("function", value))
        elif key == "calls":
            call = function, callee
            calls[call] += int(value.split()[0])
            inclusive[call] += cost(next(lines))
            callee_program, callee_file = program, function_file
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            own[function] += cost(line)
            if BYTES.match(os.path.basename(file)) or BYTES.match(function):
                of_bytes[function] += cost(line)
    return own, of_bytes, calls, inclusive


def cost(line):
    """The instructions in a line of position and cost."""
    return int((line.split() + ["0"])[1])


def identify(program, file, function):
    """The name of a function, the same for every build that has it."""
    if program == "???":
        return GUEST
    if function.startswith("0x"):  # musl's assembly has files and no sizes, with which Valgrind ignores its symbols.
        return os.path.basename(file).removesuffix(".s") if file.endswith(".s") else NO_SYMBOL
    # A hash of the crate, one of the function, a part of a module, and the depth of a recursion.
    return re.sub(r"\[[0-9a-f]{16}\]|::h[0-9a-f]{16}\b|\.llvm\.\d+|'\d+$", "", function)


def shorten(function):
    """A name with the crate and the last part of each path: what is left is as good as unique."""
    return re.sub(r"\b(\w+)::(?:\w+::)+(?=[\w])", r"\1::", function)


def check_code(symbols):
    """Ends the program if NAME.symbols has other code than NAME, which is shipped, or no symbols."""
    shipped = symbols.with_suffix("")
    if symbols.suffix != ".symbols" or not shipped.exists():
        return
    if code(symbols) != code(shipped):
        sys.exit(f"error: {symbols} has other code than {shipped}: build both again")


def code(path):
    """The executable segments of a program for a 64-bit machine."""
    file = path.read_bytes()
    (table,) = struct.unpack_from("<Q", file, 32)
    size, entries = struct.unpack_from("<HH", file, 54)
    headers = [struct.unpack_from("<IIQQQQ", file, table + size * entry) for entry in range(entries)]
    return [file[offset : offset + length] for kind, flags, offset, _, _, length in headers if kind == 1 and flags & 1]


def require(command, remedy):
    if shutil.which(command) is None:
        sys.exit(f"error: no `{command}` on PATH: {remedy}")
