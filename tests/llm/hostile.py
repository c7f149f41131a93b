"""Runs of a tiny model over two servers, one of them behind a man in the middle, and what must hold after each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from ggml_rpc.errors import PlacementError, RpcError
from ggml_rpc.llm.generate import LLM
from ggml_rpc.llm.results import Token
from ggml_rpc.llm.sampling import SamplingParams
from ggml_rpc.server import Server
from ggml_rpc.spec.commands import Command
from tests.support.tamper import Spoiler, Tamper

from .models import cached
from .models.shapes import RandomModel
from .remote import PATIENCE, drained, held

TINY = RandomModel("tiny", "llama", n_embd=64, n_ff=64, n_head=2, n_head_kv=1, head_dim=32, n_vocab=96)
PROMPT = [(7 * i + 3) % 96 for i in range(50)]
N_TOKENS = 4
SIZES: dict[str, Any] = {"n_ctx": 256, "n_batch": 64, "n_ubatch": 16, "threads": 1, "tensor_split": "1,1"}
GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=1.0, top_k=4, seed=1)
PLACES = ("first", "last")
"""Of the man in the middle among two servers."""
# Of threads that the package starts and must end.
OURS = ("load", "hash", "connect", "pipeline")


def tiny(kind: str = "Q8_0") -> Path:
    """Return the model's file."""
    return cached(TINY, kind)


@dataclass
class Run:
    """What came of a run.

    Attributes
    ----------
    tokens : list of int
        As far as it came.
    error : RpcError or None
        What ended it.
    opened, first, last : int
        Requests that the man in the middle had seen when the model was open, the first token there, the last one there.
    """

    tokens: list[int] = field(default_factory=list)
    error: RpcError | None = None
    opened: int = 0
    first: int = 0
    last: int = 0


def run(rpc: list[str], man: Tamper, *, sampling: SamplingParams = DRAWN, kind: str = "Q8_0", **options: Any) -> Run:
    """Open the tiny model, take a prompt in, generate, close. Any error but an `RpcError` passes through."""
    out = Run()

    def note(token: Token) -> None:
        out.tokens.append(token.id)

    try:
        with LLM(tiny(kind), rpc=rpc, **{**SIZES, **options}) as llm:
            out.opened = len(man.seen)
            answer = llm.generate(PROMPT, max_tokens=N_TOKENS, sampling=sampling, ignore_eos=True, on_token=note)
            next(answer)
            out.first = len(man.seen)
            answer.finish()
            out.last = len(man.seen)
    except RpcError as e:
        out.error = e
    return out


def order(man: Tamper, other: Server, place: str) -> list[str]:
    """Return the endpoints with the man in the middle first or last."""
    return [man.endpoint, other.endpoint] if place == "first" else [other.endpoint, man.endpoint]


def complaints(out: Run, man: Tamper, *, must_fail: bool = True) -> Iterator[str]:
    """Yield what is wrong with the way in which a run ended."""
    if out.error is None:
        if must_fail:
            yield f"no error, tokens {out.tokens}"
        return
    text = str(out.error)
    if isinstance(out.error, PlacementError):
        text = text.removesuffix(out.error.table).removesuffix("\n")
    elif man.endpoint not in text:
        yield f"the endpoint is not named: {text}"
    if "\n" in text:
        yield f"more than one line: {text}"


def leftovers(man: Tamper, *running: Server) -> Iterator[str]:
    """Yield what is still there of a run that ended."""
    if not man.drained():
        yield "a connection to the man in the middle"
    for server in running:
        if not drained(server):
            yield f"a connection to {server.endpoint} with {held(server)} bytes"
    until = time.monotonic() + PATIENCE
    while left := [t.name for t in threading.enumerate() if t.name.startswith(OURS)]:
        if time.monotonic() > until:
            yield f"threads {left}"
            return
        time.sleep(0.002)


@dataclass(frozen=True)
class Point:
    """One request of a run: the `nth` of its command, counted from 1, in a step of the run."""

    step: str
    command: Command
    nth: int

    def __str__(self) -> str:
        return f"{self.step}: {self.command.name} {self.nth}"


def points(seen: list[Command], out: Run) -> list[Point]:
    """Return the requests of a run until its last token, of equal ones in a row the first."""
    cache = seen.index(Command.BUFFER_CLEAR) - 2 if Command.BUFFER_CLEAR in seen else out.opened
    load = seen.index(Command.GET_DEVICE_MEMORY)
    counts: dict[Command, int] = {}
    found: list[Point] = []
    at = 0
    for command, same in groupby(seen[: out.last]):
        steps = {"connect": load, "load": cache, "cache": out.opened, "prefill": out.first}
        step = next((name for name, end in steps.items() if at < end), "decode")
        found.append(Point(step, command, counts.get(command, 0) + 1))
        n = len(list(same))
        counts[command] = counts.get(command, 0) + n
        at += n
    return found


def distinct(found: list[Point]) -> list[Point]:
    """Return the first point of each command in each step."""
    return list({(p.step, p.command): p for p in reversed(found)}.values())[::-1]


@contextmanager
def between(server: Server, point: Point, spoiler: Spoiler, **options: Any) -> Iterator[Tamper]:
    """Put a man before a server who spoils a point."""
    with Tamper(server.endpoint, point.command, point.nth, spoiler, **options) as man:
        yield man
