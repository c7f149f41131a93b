"""Our client gets from servers of every version what it computes itself, and what that version's client computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggml_rpc.client.remote import connect
from ggml_rpc.errors import ContextError
from ggml_rpc.peers.process import PATIENT, ServerProcess
from ggml_rpc.peers.source import SOURCES, find_source_peer
from ggml_rpc.spec import dialects
from tests.e2e import ours
from tests.e2e.compare import assert_close
from tests.e2e.proxy import CountingProxy

from .session import Session
from .test_clients import feed, forced, write

pytestmark = pytest.mark.peer


@pytest.fixture(scope="session")
def server_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the server program of a protocol, compiled at first use."""
    known: dict[str, Path] = {}

    def build(protocol: str) -> Path:
        if protocol not in known:
            peer = find_source_peer(protocol)
            if peer is None:
                pytest.skip(f"{protocol} is not built: make interop PROTOCOLS={protocol}")
            known[protocol] = tmp_path_factory.mktemp("server") / "server"
            peer.compile(Path(__file__).with_name("server.cpp"), known[protocol])
        return known[protocol]

    return build


@pytest.fixture
def stock(server_program) -> Iterator[Callable[[str], ServerProcess]]:
    """Return a function that starts a version's own server; all of them end with the test."""
    started: list[ServerProcess] = []

    def start(protocol: str) -> ServerProcess:
        # A server that gives up would start a debugger for a back trace.
        environment = {**PATIENT, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1))}
        started.append(ServerProcess([str(server_program(protocol))], ["-t", "2"], environment=environment))
        return started[-1]

    yield start
    for server in started:
        server.stop()


class References:
    """Give a version's logits and ours, each on this machine alone, for batches that the version's tokenizer made."""

    def __init__(self, program, models):
        self._program = program
        self.models = models
        self._batches = {}
        self._known = {}

    def rows(self, protocol, kind, flash):
        """Return the batches, and the rows of each."""
        with Session(self._program(protocol), self.models[kind], flash) as session:
            batches = self._batches.setdefault(kind, forced(session, kind))
            theirs = feed(session, batches).rows
        if (kind, flash) not in self._known:
            self._known[kind, flash] = ours.rows_of(self.models[kind], [], batches, flash=flash)
        return batches, {"its client": theirs, "local": self._known[kind, flash]}


@pytest.fixture(scope="module")
def references(program, models):
    """Return what is computed without a server."""
    return References(program, models)


@pytest.mark.parametrize("protocol", SOURCES)
def test_small_graphs(protocol, stock):
    process = stock(protocol)
    with connect(process.endpoint) as server:
        ours.check_table(server, protocol)
        ours.check_small_graphs(server.devices[0])
        ours.check_copies(server.devices[0])
    ours.check_serves_on(process)


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "plain"])
@pytest.mark.parametrize("kind", ["gemma-f16", "float"])
@pytest.mark.parametrize("protocol", SOURCES)
def test_logits_match(protocol, kind, flash, stock, references):
    server, model = stock(protocol), references.models[kind]
    if dialects.find(protocol).ik_meaning and flash and kind == "gemma-f16":
        with pytest.raises(ContextError, match="turn flash attention off"):
            ours.rows_of(model, [server.endpoint], [[2]], flash=True)
        ours.check_serves_on(server)
        return
    batches, expected = references.rows(protocol, kind, flash)
    with CountingProxy(server.endpoint) as proxy:
        rows = ours.rows_of(model, [proxy.endpoint], batches, flash=flash)
    for name, want in expected.items():
        assert_close(rows, want, kind, f"{protocol} against {name}")
    ours.check_repeats(proxy, protocol, ours.STEPS)
    ours.check_serves_on(server)


@pytest.mark.parametrize("protocol", SOURCES)
def test_text_is_its_clients(protocol, stock, program, models):
    with Session(program(protocol), models["gemma"], True) as session:
        want = write(session, ours.PROMPT)
    server = stock(protocol)
    got = ours.written(models["gemma"], [server.endpoint], 24)
    print(f"{protocol}: {got!r}")
    assert got == want
    ours.check_serves_on(server)


@pytest.mark.parametrize("protocol", SOURCES)
def test_killed_server_is_reported(protocol, stock, models):
    ours.check_loss(models["gemma"], stock(protocol))
