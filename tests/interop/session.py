"""Talk to a running client of some llama.cpp version; see client.cpp for its lines."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.peers.process import PATIENT

END_SECONDS = 30.0


class ClientError(RuntimeError):
    """Tell that a client ended, with the last lines of its log."""


class Session:
    """Hold a client with a loaded model.

    Parameters
    ----------
    program : pathlib.Path
        The compiled client.
    model : pathlib.Path
        GGUF file.
    flash : bool
        Use flash attention.
    servers : sequence of str
        Endpoints that take all layers; empty for the local CPU.

    Raises
    ------
    ClientError
        If it cannot load the model or cannot speak with a server.
    """

    def __init__(self, program: Path, model: Path, flash: bool, servers: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="interop-")
        self._rows = Path(self._folder.name) / "rows.f32"
        self._log = open(Path(self._folder.name) / "log", "w+")  # noqa: SIM115 - closed with the session
        self._process = subprocess.Popen(
            [str(program), str(model), "on" if flash else "off", "2", str(self._rows), *servers],
            # A client that gives up would start a debugger for a back trace.
            env={**os.environ, **PATIENT, "GGML_NO_BACKTRACE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.n_vocab = int(self._read("ready"))
        except ClientError:
            self.close()
            raise

    def _read(self, verb: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith(verb):
            status = self._process.wait(END_SECONDS)
            self._log.seek(0)
            raise ClientError(f"the client ended with {status}:\n{self._log.read()[-3000:]}")
        return line[len(verb) :].strip()

    def _ask(self, verb: str, rest: str, answer: str) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{verb} {rest}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading tells why
        return self._read(answer)

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, the start token first."""
        return [int(word) for word in self._ask("text", " ".join(text.split()), "ids").split()]

    def decode(self, tokens: Iterable[int]) -> int:
        """Append a batch of tokens and return the likeliest next one."""
        return int(self._ask("batch", " ".join(map(str, tokens)), "top"))

    def piece(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens."""
        return bytes.fromhex(self._ask("piece", " ".join(map(str, tokens)), "piece")).decode("utf-8", "replace")

    def rows(self) -> NDArray[np.float32]:
        """Return the logits of all batches so far, shape ``(batches, n_vocab)``."""
        return np.fromfile(self._rows, np.float32).reshape(-1, self.n_vocab)

    def close(self) -> int:
        """End the client, by force if it does not go, and return its exit status."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()
        return status

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()
