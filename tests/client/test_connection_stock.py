"""Connections to stock servers: what they announce, a graph, a graph again, and how they refuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ggml_rpc.client.connection import Connection
from ggml_rpc.errors import DeadlineExceeded, ServerRefused
from ggml_rpc.peers import prepare_peer
from ggml_rpc.peers.process import PATIENT, ServerProcess
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from tests.e2e.conftest import need

from .fakeserver import SECONDS, WiredClient
from .test_connection_handshake import check_served

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module", params=["8.0", "7.0"])
def stock(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Run a stock server; return its protocol and endpoint."""
    peer = need(f"stock peer {request.param}", lambda: prepare_peer(request.param))
    # An assertion that fails in stock would start a debugger for its backtrace.
    environment = {**PATIENT, "GGML_NO_BACKTRACE": "1"}
    with ServerProcess(peer.driver_command(["serve"]), ["-t", "1"], environment=environment) as server:
        yield request.param, server.endpoint


def test_a_stock_server_serves(stock: tuple[str, str]) -> None:
    protocol, endpoint = stock
    with Connection(endpoint, timeout=SECONDS) as connection:
        assert connection.candidates == (dialects.find(protocol),)
        check_served(connection)
        client = WiredClient(connection)
        assert client.device_count() == 1
        free, total = client.memory()
        assert 0 < free <= total


def test_a_stock_server_refuses_by_closing(stock: tuple[str, str]) -> None:
    with Connection(stock[1], timeout=SECONDS) as connection:
        connection.send(Command.FREE_BUFFER, b"\1" * 8)
        pending = connection.call(Command.GET_ALIGNMENT, bytes(4))
        with pytest.raises(ServerRefused, match="after FREE_BUFFER, GET_ALIGNMENT; its log may say why"):
            pending.result()
    with Connection(stock[1], timeout=SECONDS) as connection:
        check_served(connection)


def test_a_stock_server_serves_one_client_at_a_time(stock: tuple[str, str]) -> None:
    with Connection(stock[1], timeout=SECONDS) as connection:
        with pytest.raises(DeadlineExceeded, match="stock servers serve one at a time"):
            Connection(stock[1], connect_timeout=0.2)
        check_served(connection)
