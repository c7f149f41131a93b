"""Clients of every version get from our server what they get from their own CPU, whatever spoke to it before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ggml_rpc.peers.process import ServerProcess
from ggml_rpc.peers.source import SOURCES, find_source_peer
from ggml_rpc.server.protocols import CANDIDATES
from ggml_rpc.spec import dialects
from tests.e2e.compare import assert_close
from tests.e2e.proxy import CountingProxy

from .session import ClientError, Session

pytestmark = pytest.mark.peer

FORCED = 16
WRITTEN = 24
PROMPT = "Monday, Tuesday, Wednesday,"  # what follows is plain enough for any rounding
TEXT = Path(__file__).parents[1] / "e2e" / "text.txt"
MODELS = ("gemma-f16", "float", "quantised")


class Run(NamedTuple):
    """The batches that were fed and a row of logits a batch."""

    batches: list[list[int]]
    rows: NDArray[np.float32]


def forced(session: Session, kind: str) -> list[list[int]]:
    """Return a prompt in one batch and what follows it one token at a time, for a model without words any numbers."""
    if kind == "gemma-f16":
        tokens, length = session.tokenize(TEXT.read_text()), 300
    else:
        tokens, length = [(37 * i + 11) % 509 for i in range(200)], 100
    return [tokens[:length], *([token] for token in tokens[length : length + FORCED])]


def feed(session: Session, batches: list[list[int]]) -> Run:
    """Feed batches."""
    for batch in batches:
        session.decode(batch)
    return Run(batches, session.rows())


def write(session: Session, prompt: str) -> str:
    """Return a prompt with the likeliest tokens that follow."""
    batch = session.tokenize(prompt)
    written: list[int] = []
    for _ in range(WRITTEN):
        batch = [session.decode(batch)]
        written += batch
    return prompt + session.piece(written)


class Version:
    """Start clients of one version."""

    def __init__(self, protocol: str, program: Path, models: dict[str, Path]) -> None:
        self.protocol = protocol
        self._program = program
        self._models = models
        self._runs: dict[tuple[str, bool], Run] = {}

    @property
    def candidates(self) -> int:
        """The number of versions that an automatic server offers such a client in turn."""
        return len(CANDIDATES[dialects.find(self.protocol).hello_request])

    def start(self, kind: str, flash: bool, *servers: str) -> Session:
        """Start a client, which must succeed at once."""
        return Session(self._program, self._models[kind], flash, servers)

    def connect(self, kind: str, flash: bool, endpoint: str) -> tuple[Session, int]:
        """Start a client until an automatic server offers what it accepts; return it and the number of failures."""
        failures = 0
        while True:
            try:
                return self.start(kind, flash, endpoint), failures
            except ClientError as error:
                failures += 1
                if failures == self.candidates:
                    raise AssertionError(
                        f"{self.protocol}: all {failures} attempts failed, the last:\n{error}"
                    ) from error

    def local(self, kind: str, flash: bool) -> Run:
        """Return the run on the client's own CPU, computed once."""
        if (kind, flash) not in self._runs:
            with self.start(kind, flash) as session:
                self._runs[kind, flash] = feed(session, forced(session, kind))
        return self._runs[kind, flash]

    def check(self, session: Session, kind: str, flash: bool, label: str) -> None:
        """Feed a remote session what the local one was fed, end it, and compare."""
        want = self.local(kind, flash)
        with session:
            got = feed(session, want.batches)
        assert_close(got.rows, want.rows, kind, label)


def assert_computed(server: ServerProcess) -> None:
    """Assert that a server lives and, by its log, ran a graph a batch and holds the model; then end it."""
    assert server.running()
    server.stop()
    log = server.output()
    assert log.count("COMPUTE: device") >= FORCED + 1
    assert "SET_TENSOR: 'blk.0." in log


@pytest.fixture(scope="session")
def version(program: Callable[[str], Path], models: dict[str, Path]) -> Callable[[str], Version]:
    """Return a function that gives the version of a protocol."""
    known: dict[str, Version] = {}

    def find(protocol: str) -> Version:
        if protocol not in known:
            known[protocol] = Version(protocol, program(protocol), models)
        return known[protocol]

    return find


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "plain"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("protocol", SOURCES)
def test_named_protocol_computes_as_local_cpu(protocol, kind, flash, start_server, version):
    server = start_server(protocol)
    client = version(protocol)
    client.check(client.start(kind, flash, server.endpoint), kind, flash, f"{protocol}, {kind}")
    assert_computed(server)


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "plain"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("protocol", SOURCES)
def test_auto_computes_as_local_cpu(protocol, kind, flash, start_server, version):
    server = start_server("auto")
    client = version(protocol)
    session, failures = client.connect(kind, flash, server.endpoint)
    client.check(session, kind, flash, f"{protocol} after {failures} failed attempts, {kind}")
    assert_computed(server)


@pytest.mark.parametrize("protocol", SOURCES)
def test_text_is_that_of_local_cpu(protocol, start_server, version):
    client = version(protocol)
    with client.start("gemma", True) as session:
        want = write(session, PROMPT)
    session, failures = client.connect("gemma", True, start_server("auto").endpoint)
    with session:
        got = write(session, PROMPT)
    print(f"{protocol} after {failures} failed attempts: {got!r}")
    assert got == want


def test_versions_take_turns_on_one_server(start_server, version):
    server = start_server("auto")
    stays = version("5.0.0")
    first = stays.local("float", True)
    with CountingProxy(server.endpoint, source="127.0.0.2") as elsewhere:
        live, _failures = stays.connect("float", True, elsewhere.endpoint)
        with live:
            live.decode(first.batches[0])
            others = [name for name in SOURCES if name != stays.protocol and find_source_peer(name) is not None]
            assert others
            for step, protocol in enumerate([*others, stays.protocol, *reversed(others)], start=1):
                session, failures = version(protocol).connect("float", True, server.endpoint)
                version(protocol).check(
                    session, "float", True, f"step {step}, {protocol} after {failures} failed attempts"
                )
                live.decode(first.batches[step])
            rows = live.rows()
    assert_close(rows, first.rows[: len(rows)], "float", "the session that stayed")


def test_live_session_keeps_its_address(start_server, version):
    server = start_server("auto")
    stays, refused, other = version("5.0.0"), version("4.0.1"), version("3.6.1")
    first = stays.local("float", True)
    live, _failures = stays.connect("float", True, server.endpoint)
    with live:
        live.decode(first.batches[0])
        for _ in range(refused.candidates):
            with pytest.raises(ClientError):
                refused.start("float", True, server.endpoint)
        # This one's HELLO has another length, so that it is told from the one that stays.
        session, _failures = other.connect("float", True, server.endpoint)
        other.check(session, "float", True, "3.6.1 beside 5.0.0")
        for batch in first.batches[1:]:
            live.decode(batch)
        rows = live.rows()
    assert_close(rows, first.rows, "float", "the session that stayed")
    session, _failures = refused.connect("float", True, server.endpoint)
    refused.check(session, "float", True, "4.0.1 once 5.0.0 has gone")
