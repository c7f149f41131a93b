"""Run RPC servers, ours or stock, as child processes that are always ended by pid."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

_ENDPOINT = re.compile(r"endpoint\s*:\s*(\S+:\d+)")
KEPT_LINES = 2000
# Stock's OpenMP threads spin while they wait: beside any other busy process they become a hundred times slower. Where
# results count and not speed, let them sleep.
PATIENT = {"OMP_WAIT_POLICY": "passive"}


def module_command(module: str) -> list[str]:
    """Return the argv prefix that runs ``main()`` of a module of this very package.

    ``python -m`` would look into the working folder first, and there may be a source tree without extensions.
    """
    root = str(Path(__file__).parents[2])
    return [sys.executable, "-c", f"import sys; sys.path[0] = {root!r}; from {module} import main; sys.exit(main())"]


def own_server_command() -> list[str]:
    """Return the argv prefix of this package's server, run by this interpreter."""
    return module_command("ggml_rpc.cli.server")


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception within the block, so that a terminated program still ends its servers.

    For the main thread only.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class ServerError(RuntimeError):
    """Tell that a server did not start; the message holds the end of its output."""


class ServerProcess:
    """Start a server on a free loopback port and wait until it prints its endpoint.

    Parameters
    ----------
    command : sequence of str
        The server's argv prefix; ``--host 127.0.0.1 --port 0`` is added.
    arguments : sequence of str
        Further options, such as ``["-t", "2", "-d", "CPU,CPU"]``.
    environment : mapping of str to str, optional
        Variables set in addition to this process's own.
    timeout : float
        Seconds to wait for the endpoint.

    Attributes
    ----------
    endpoint : str
        ``host:port``, ready for a client.

    Raises
    ------
    ServerError
        If the server ends or prints no endpoint in time.
    """

    def __init__(
        self,
        command: Sequence[str],
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.command = [*command, "-H", "127.0.0.1", "--port", "0", *arguments]
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._ready = threading.Event()
        self.endpoint = ""
        self._process = subprocess.Popen(
            self.command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        # A full pipe would block a server that logs a line a command: both must always be read.
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_output, self._read_log)]
        for reader in self._readers:
            reader.start()
        if not self._ready.wait(timeout) or not self.endpoint:
            self.stop()
            raise ServerError(f"{' '.join(command)} did not start:\n" + self.output()[-2000:])

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            found = _ENDPOINT.search(line)
            if found and not self.endpoint:
                self.endpoint = found[1]
                self._ready.set()
        self._ready.set()

    def _read_log(self) -> None:
        # A stock server's libraries name the endpoint here before it listens, so it is not looked for.
        assert self._process.stderr is not None
        self.lines.extend(self._process.stderr)

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._process.pid

    def output(self) -> str:
        """Return the last lines that the server printed."""
        return "".join(list(self.lines))

    def running(self) -> bool:
        """Tell whether the process is alive."""
        return self._process.poll() is None

    def rss_bytes(self) -> int:
        """Return the resident memory of the process in bytes, 0 if it has ended."""
        return resident_bytes(self.pid)

    def stop(self) -> int:
        """End the process, by force if it does not go within 10 s, and return its exit status."""
        if self.running():
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        status = self._process.wait()
        for reader in self._readers:
            reader.join(5)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        return status

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def wait_until_below(pid: int, limit: int, timeout: float) -> int:
    """Wait until a process's resident memory is at most `limit` bytes; return the last value seen."""
    deadline = time.monotonic() + timeout
    while True:
        value = resident_bytes(pid)
        if value <= limit or time.monotonic() > deadline:
            return value
        time.sleep(0.05)
