"""Our client gets from servers of every version what it computes itself, and what that version's client computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggml_rpc.client.remote import connect
from ggml_rpc.peers.process import PATIENT, ServerProcess
from ggml_rpc.peers.source import SOURCES, find_source_peer
from tests.e2e import ours
from tests.e2e.compare import assert_close
from tests.e2e.proxy import CountingProxy

from .session import Session
from .test_clients import TEXT, write

pytestmark = pytest.mark.peer

PROMPT_TOKENS = 300


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


@pytest.fixture(scope="module")
def reference(program, models):
    """Return a function that gives a version's batches and logits, and ours, each on this machine alone."""
    known = {}

    def rows(protocol, flash):
        if (protocol, flash) not in known:
            with Session(program(protocol), models["gemma-f16"], flash) as session:
                tokens = session.tokenize(TEXT.read_text())[: PROMPT_TOKENS + ours.STEPS]
                batches = [tokens[:PROMPT_TOKENS], *([token] for token in tokens[PROMPT_TOKENS:])]
                for batch in batches:
                    session.decode(batch)
                theirs = session.rows()
            if ("", flash) not in known:
                known["", flash] = (batches, ours.rows_of(models["gemma-f16"], [], batches, flash=flash))
            assert known["", flash][0] == batches
            known[protocol, flash] = (batches, {"its client": theirs, "local": known["", flash][1]})
        return known[protocol, flash]

    return rows


@pytest.mark.parametrize("protocol", SOURCES)
def test_small_graphs(protocol, stock):
    with connect(stock(protocol).endpoint) as server:
        ours.check_table(server, protocol)
        ours.check_small_graphs(server.devices[0])
        ours.check_copies(server.devices[0])


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "plain"])
@pytest.mark.parametrize("protocol", SOURCES)
def test_logits_match(protocol, flash, stock, models, reference):
    batches, expected = reference(protocol, flash)
    with CountingProxy(stock(protocol).endpoint) as proxy:
        rows = ours.rows_of(models["gemma-f16"], [proxy.endpoint], batches, flash=flash)
    for name, want in expected.items():
        assert_close(rows, want, "gemma-f16", f"{protocol} against {name}")
    ours.check_repeats(proxy, protocol, ours.STEPS)


@pytest.mark.parametrize("protocol", SOURCES)
def test_text_is_its_clients(protocol, stock, program, models):
    with Session(program(protocol), models["gemma"], True) as session:
        want = write(session, ours.PROMPT)
    got = ours.written(models["gemma"], [stock(protocol).endpoint], 24)
    print(f"{protocol}: {got!r}")
    assert got == want


@pytest.mark.parametrize("protocol", SOURCES)
def test_killed_server_is_reported(protocol, stock, models):
    ours.check_loss(models["gemma"], stock(protocol))
