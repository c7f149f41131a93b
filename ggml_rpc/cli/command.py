"""How every command of the client ends: exit status, one line for an error, and signals that free what servers hold."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType

from ggml_rpc.errors import RpcError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by SIGINT or SIGTERM, so that all that is open is closed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Refused(Exception):
    """Tell why a command cannot do what it was asked; the text is the whole line."""


class Signals:
    """Handle SIGINT and SIGTERM while a command runs; a context manager, for the main thread.

    The first of them raises `Stopped`, once more ends the process at once: closing may wait for a server.

    Attributes
    ----------
    cancel : callable or None
        What a SIGINT calls, once, instead of stopping the command.
    """

    def __init__(self) -> None:
        self.cancel: Callable[[], None] | None = None
        self._number: int | None = None
        self._previous: list[object] = []

    def __enter__(self) -> Signals:
        self._previous = [signal.signal(number, self._handle) for number in _SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in zip(_SIGNALS, self._previous, strict=True):
            signal.signal(number, previous)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise `Stopped` if a signal came where Python drops exceptions, in a finaliser."""
        if self._number is not None:
            raise Stopped(self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.cancel is not None:
            cancel, self.cancel = self.cancel, None
            cancel()
            return
        self._number = number
        for again in _SIGNALS:
            signal.signal(again, _leave)
        raise Stopped(number)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def execute(prog: str, work: Callable[[Signals], int], on_error: Callable[[str], None] | None = None) -> int:
    """Run a command's work and return its exit status.

    Parameters
    ----------
    prog : str
        The command's name, for the line on standard error.
    work : callable
        Given the `Signals`; returns an exit status.
    on_error : callable, optional
        Told of an error's text before it is printed.

    Returns
    -------
    int
        What `work` returns; 1 after an error, 128 and the signal's number after a signal.
    """
    try:
        with Signals() as signals:
            try:
                status = work(signals)
                sys.stdout.flush()
                return status
            except (RpcError, Refused) as error:
                text = str(error)
            except ModuleNotFoundError as error:
                text = f"the package {error.name} is not installed: pip install 'ggml-rpc[llm]'"
            if on_error is not None:
                on_error(text)
            print(f"{prog}: {text}", file=sys.stderr, flush=True)
            return 1
    except Stopped as stopped:
        if on_error is not None:
            on_error(str(stopped))
        sys.stdout.flush()
        return 128 + stopped.number
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
