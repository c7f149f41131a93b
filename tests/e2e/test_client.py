"""Our client gets from stock servers what it computes itself, and what the stock client gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ggml_rpc.client.remote import connect
from ggml_rpc.peers.process import PATIENT, ServerProcess

from . import ours
from .compare import assert_close
from .conftest import finish
from .proxy import CountingProxy

pytestmark = pytest.mark.peer

PROTOCOLS = ("8.0", "7.0")
WRITTEN = 24


@pytest.fixture
def stock(peer) -> Iterator[Callable[[str], ServerProcess]]:
    """Return a function that starts a stock server; all of them end with the test."""
    started: list[ServerProcess] = []

    def start(protocol: str) -> ServerProcess:
        command = peer(protocol).driver_command(["serve"])
        started.append(ServerProcess(command, ["-t", "2"], environment=PATIENT))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def batches(text_tokens):
    """Return a prompt of 300 tokens and 16 that follow one by one."""
    return [text_tokens[:300], *([token] for token in text_tokens[300 : 300 + ours.STEPS])]


class Expected:
    """Give the logits of the stock client and of ours, each on this machine alone, computed once."""

    def __init__(self, stock_client, model, batches):
        self.model = model
        self.batches = batches
        self._client = stock_client
        self._known = {}

    def rows(self, flash):
        if flash not in self._known:
            sequence = ([token for batch in self.batches for token in batch], [len(batch) for batch in self.batches])
            options = ("--flash", "on" if flash else "off", "--n-ctx", str(ours.N_CTX))
            (theirs,), _layers = self._client.logits([sequence], [], *options)
            own = ours.rows_of(self.model, [], self.batches, flash=flash)
            self._known[flash] = {"stock": theirs, "local": own}
        return self._known[flash]

    def check(self, endpoints, flash, label):
        """Assert that our client gets the same over servers."""
        rows = ours.rows_of(self.model, endpoints, self.batches, flash=flash)
        for name, want in self.rows(flash).items():
            assert_close(rows, want, "gemma-f16", f"{label} against {name}")


@pytest.fixture(scope="module")
def expected(client, plain_model_path, batches):
    """Return what F16 weights give."""
    return Expected(client("8.0", plain_model_path), plain_model_path, batches)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_small_graphs(protocol, stock):
    process = stock(protocol)
    with connect(process.endpoint) as server:
        ours.check_table(server, protocol)
        ours.check_small_graphs(server.devices[0])
        ours.check_copies(server.devices[0])
    ours.check_serves_on(process)


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "plain"])
def test_local_logits_match_stock(flash, expected):
    rows = expected.rows(flash)
    assert_close(rows["local"], rows["stock"], "gemma-f16", "local")


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "plain"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_logits_match(protocol, flash, stock, expected):
    with CountingProxy(stock(protocol).endpoint) as proxy:
        expected.check([proxy.endpoint], flash, f"stock {protocol}")
    ours.check_repeats(proxy, protocol, ours.STEPS)


def test_logits_match_over_stock_and_ours(stock, start_server, expected):
    servers = [stock("7.0"), start_server("8.0")]
    expected.check([server.endpoint for server in servers], True, "stock 7.0 beside ours")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_text_is_stocks(protocol, stock, client, model_path):
    process = client("8.0").start(
        "generate", "--prompt", ours.PROMPT, "-n", str(WRITTEN), "--temperature", "0", "--n-ctx", str(ours.N_CTX)
    )
    want = ours.PROMPT + "".join(event["piece"] for event in finish(process) if event["event"] == "text")
    got = ours.written(model_path, [stock(protocol).endpoint], WRITTEN)
    assert got == want
    assert got == ours.written(model_path, [], WRITTEN)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_killed_server_is_reported(protocol, stock, model_path):
    ours.check_loss(model_path, stock(protocol))
