"""The commands as processes, and what tests of them share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 120
MAIN = [sys.executable, "-m", "ggml_rpc.cli.main"]
# Small sizes for small models, and no threads that other tests would have to share the machine with.
SMALL = ["-c", "256", "-b", "64", "-ub", "32", "-t", "1", "--temp", "0", "--ignore-eos"]

Capture = Callable[[], Any]


def run(*words: str | Path, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with a text on standard input."""
    return subprocess.run(
        [*MAIN, *map(str, words)],
        check=False,
        input=text,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **variables},
    )


@contextmanager
def started(words: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a command; end it with the block."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*MAIN, *map(str, words)], text=True, **{**pipes, **options})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=SECONDS)


def one_line(text: str, prog: str) -> str:
    """Return the message of an error that is a single line."""
    assert text.startswith(f"{prog}: "), text
    assert text.count("\n") == 1, text
    return text.removeprefix(f"{prog}: ").rstrip("\n")
