"""The server as a process: what it prints, how it ends, what it takes from the environment."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SECONDS = 30
HELLO = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts the server; keywords are variables to set, None to unset."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: str, **variables: str | None) -> subprocess.Popen[str]:
        environment = {**os.environ, **variables}
        command = [sys.executable, "-m", "ggml_rpc.cli.server", *arguments]
        process = subprocess.Popen(
            command,
            env={key: value for key, value in environment.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=SECONDS)


def read_until(process: subprocess.Popen[str], start: str) -> list[str]:
    """Return the lines of standard output up to the first that begins with `start`."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(start):
            return lines
    raise AssertionError(f"the server ended: {lines}, {process.communicate(timeout=SECONDS)}")


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    """Send a signal and return exit status and standard error."""
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err


def hello(endpoint: str) -> tuple[int, int, int]:
    """Return the version that a server answers with."""
    host, _, port = endpoint.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), SECONDS) as sock, sock.makefile("rb") as stream:
        sock.sendall(HELLO)
        size = int.from_bytes(stream.read(8), "little")
        reply = stream.read(size)
    return reply[0], reply[1], reply[2]


def test_start_text_and_answer(start: Start) -> None:
    process = start("-p", "0")
    lines = read_until(process, "  CPU: ")
    assert lines[0] == "Starting RPC server v8.0.0"
    endpoint = re.fullmatch(r"  endpoint       : (127\.0\.0\.1:([1-9]\d*))", lines[1])
    assert endpoint is not None
    assert lines[2:5] == ["  local cache    : n/a", "  protocol       : auto, what fits the client", "Devices:"]
    assert re.fullmatch(r"  CPU: .+ \(\d+ MiB, \d+ MiB free\)", lines[5])
    assert hello(endpoint[1]) == (8, 0, 0)
    status, err = stop(process)
    assert status == 0
    # The visitor above looked at the version and left, as a client of another version does.
    # Without a GPU the server says why it serves the CPU.
    told = [line for line in err.splitlines() if not line.startswith("no CUDA devices: ")]
    assert len(told) == 1
    assert "offering 7.0.0 next; to fix it use --proto 7.0.0" in told[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly_with_a_client_connected(number: int, start: Start) -> None:
    process = start("--port", "0")
    endpoint = read_until(process, "  CPU: ")[1].split(": ")[1]
    host, _, port = endpoint.rpartition(":")
    with socket.create_connection((host, int(port)), SECONDS) as sock:
        sock.sendall(HELLO)
        assert sock.recv(1)
        status, err = stop(process, number)
    assert status == 0
    assert "Traceback" not in err


def test_two_protocols_on_ipv6_with_a_cache(start: Start, tmp_path: Path) -> None:
    arguments = ("-H", "::1", "-P", "0", "--proto", "8.0,7.0@0", "-c", "-d", "CPU,CPU", "-t", "1")
    process = start(*arguments, LLAMA_CACHE=str(tmp_path))
    lines = read_until(process, "  CPU: ")
    first, second = (line.split(": ", 1)[1] for line in lines[1:3])
    assert second.endswith(" (v7.0.0)")
    assert hello(first) == (8, 0, 0)
    assert hello(second.split()[0]) == (7, 0, 0)
    assert lines[3] == f"  local cache    : {tmp_path}/rpc/"
    read_until(process, "  CPU: ")
    assert (tmp_path / "rpc").is_dir()
    status, err = stop(process)
    assert status == 0
    assert "WARNING" not in err


def test_warns_when_others_can_reach_it(start: Start) -> None:
    process = start("-H", "localhost", "-p", "0")
    read_until(process, "  CPU: ")
    assert "WARNING" not in stop(process)[1]
    # A documentation address is nobody's: the warning comes, the server does not.
    status, err = stop(start("-H", "192.0.2.1", "-p", "0"), 0)
    assert status == 1
    assert "WARNING: '192.0.2.1' is not a loopback address" in err
    assert "cannot listen on 192.0.2.1:0" in err


def test_debug_prints_a_line_a_command(start: Start) -> None:
    process = start("-p", "0", GGML_RPC_DEBUG="1")
    endpoint = read_until(process, "  CPU: ")[1].split(": ")[1]
    hello(endpoint)
    _, err = stop(process)
    assert "HELLO" in err


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (["-d", "CUDA9"], {}, "error: unknown device: CUDA9\navailable devices:\n  CPU: "),
        (["-c"], {"HOME": None, "LLAMA_CACHE": None, "XDG_CACHE_HOME": None}, "error: -c: no cache folder"),
        ([], {"GGML_RPC_ISA": "avx9000"}, "avx9000"),
        (["-H", "a..b"], {}, "cannot listen on 'a..b'"),
    ],
)
def test_cannot_start(arguments: list[str], variables: dict[str, str | None], says: str, start: Start) -> None:
    status, err = stop(start("-p", "0", *arguments, **variables), 0)
    assert status == 1
    assert says in err
    assert "Traceback" not in err


def test_port_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, err = stop(start("-p", str(port)), 0)
    assert status == 1
    assert f"cannot listen on 127.0.0.1:{port}" in err


def test_runs_without_a_home(start: Start) -> None:
    process = start("-p", "0", HOME=None, LLAMA_CACHE=None, XDG_CACHE_HOME=None)
    read_until(process, "  CPU: ")
    assert stop(process)[0] == 0
