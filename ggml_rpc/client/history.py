"""What was sent lately, to say in an error after which requests a connection failed."""

from __future__ import annotations

from collections import deque
from itertools import groupby

from ggml_rpc.spec.commands import Command

_KEPT = 256
_SHOWN = 6


class History:
    """Number the requests of a connection and keep the names of the last.

    Attributes
    ----------
    n_sent : int
        Requests so far.
    """

    def __init__(self) -> None:
        self.n_sent = 0
        self._last: deque[Command] = deque(maxlen=_KEPT)

    def add(self, command: Command) -> int:
        """Note a request; return its number, from 1."""
        self._last.append(command)
        self.n_sent += 1
        return self.n_sent

    def after(self, number: int) -> str:
        """Name the requests after this one in order, equal ones in a row once; empty if there are none."""
        n_open = self.n_sent - number
        # The copy is one step, whatever other threads do; a slice of the deque would not be.
        names = [c.name for c in self._last.copy()][-n_open:] if n_open else []
        runs = [(name, len(list(same))) for name, same in groupby(names)]
        shown = [name if n == 1 else f"{name} ({n} times)" for name, n in runs[-_SHOWN:]]
        return ", ".join(["..."] * (len(runs) > _SHOWN) + shown)
