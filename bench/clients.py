"""Drive a stock client in a process of its own, one request at a time, so that several can take turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from types import TracebackType


class Client:
    """Hold a client of one model and one server; it answers each request with the seconds that it took.

    Parameters
    ----------
    command : sequence of str
        The client's argv; `Opponent.client` makes it.

    Raises
    ------
    RuntimeError
        If the client ends instead of answering.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, request: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # reading tells that it has ended
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended with status {self._process.wait()} at {request!r}")
        return float(json.loads(line)["seconds"])

    def load(self) -> float:
        """Load the model onto the server and free it again."""
        return self._ask("load")

    def open(self) -> float:
        """Load the model and make a context, for the requests below."""
        return self._ask("open")

    def clear(self) -> None:
        """Forget all tokens."""
        self._ask("clear")

    def decode(self, batch: int, count: int = 1) -> float:
        """Append `count` batches of `batch` tokens, one after another."""
        return self._ask(f"decode {batch} {count}")

    def fill(self, tokens: int, batch: int) -> float:
        """Append so many tokens in batches of at most `batch`."""
        seconds = self.decode(batch, tokens // batch) if tokens >= batch else 0.0
        return seconds + (self.decode(tokens % batch) if tokens % batch else 0.0)

    def close(self) -> None:
        """End the client, by force if it does not go within 30 s."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()
