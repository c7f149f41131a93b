"""A valid graph of every op is computed; each graph that is one field off is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from tests.support.rawclient import RawClient
from tests.support.servers import RunningServer
from tests.wire.kinds import HEAVY_KINDS, KINDS
from tests.wire.near_misses import Valid, build, known, payload, spoils
from tests.wire.session import Attacker, Neighbour, ServerLog


def connect(server: RunningServer, dialect: dialects.Dialect) -> Attacker:
    """Return a client whose buffer holds zeros, so that every index in it is good."""
    attacker = Attacker(RawClient(server.endpoint, dialect))
    attacker.client.clear(attacker.buffer.handle, 0)
    return attacker


def graphs(kinds: Sequence[str]) -> pytest.MarkDecorator:
    """Run a test with each valid graph of each dialect."""
    pairs = [pytest.param(k, v, id=f"{k}-{v.name}") for k in kinds for v in known(dialects.find(k))]
    return pytest.mark.parametrize(("dialect", "valid"), pairs, indirect=["dialect"], scope="module")


@graphs(KINDS)
def test_valid_graph(server: RunningServer, dialect: dialects.Dialect, valid: Valid) -> None:
    attacker = connect(server, dialect)
    with attacker.client as client:
        node = build(attacker, valid)
        client.compute([node])
        assert len(client.get(node)) == node.nbytes()


@graphs(HEAVY_KINDS)
def test_near_misses(
    server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour, log: ServerLog, valid: Valid
) -> None:
    wrong = []
    for what, spoil in spoils(valid, dialect):
        log.clear()
        attacker = connect(server, dialect)
        with attacker.client as client:
            node = build(attacker, valid)
            spoil(attacker, node)
            client.send(dialect.commands[Command.GRAPH_COMPUTE], payload(attacker, node))
            if not client.closed_by_peer(timeout=3.0):
                wrong.append(f"{what}: not refused")
                continue
        try:
            log.wait_for(lambda line: "GRAPH_COMPUTE" in line and "tensor '" in line, timeout=3.0)
        except AssertionError as error:
            wrong.append(f"{what}: {error}")
    assert not wrong, f"{valid.name}: {len(wrong)} graphs:\n" + "\n".join(wrong)
