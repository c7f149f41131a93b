"""Single nodes of ops that ik_llama.cpp has beside llama.cpp's, computed by a server of it and by ours."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ggml_rpc.devices.cpu import ISA_VARIABLE, levels
from ggml_rpc.peers.source import find_source_peer
from ggml_rpc.spec import dialects
from tests.graph.examples import EXAMPLES, IK_3_5, Example
from tests.parity.conftest import Servers
from tests.parity.contents import contents
from tests.support.parity import Deviation, compare
from tests.support.rawclient import RawClient
from tests.support.servers import running_server
from tests.support.wiretensor import Arena, Tensor

pytestmark = pytest.mark.peer

# The newest one that a source package holds: without the ops of its last months.
PROTOCOL = "ik-3.5.2@2026-04-13"
DIALECT = dialects.find(PROTOCOL)
BUFFER_BYTES = 16 << 20
OPS = {
    *("FUSED_RMS_NORM", "FUSED_NORM", "FUSED_RMS_RMS_ADD", "FUSED_MUL_UNARY", "SOFTCAP", "HADAMARD"),
    *("GROUPED_TOPK", "ARGSORT_THRESH", "ROPE_CACHE", "ROPE_FAST"),
}
SHARED = [e for e in EXAMPLES if e.dialect is IK_3_5 and e.op in OPS]
SERVER = Path(__file__).parents[1] / "interop" / "server.cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ik_llama.cpp's server."""
    peer = find_source_peer(PROTOCOL)
    if peer is None:
        pytest.skip(f"{PROTOCOL} is not built: make interop PROTOCOLS={PROTOCOL}")
    target = tmp_path_factory.mktemp("ik") / "server"
    peer.compile(SERVER, target)
    return target


@pytest.fixture(scope="module", params=levels())
def pair(request: pytest.FixtureRequest, program: Path) -> Iterator[Servers]:
    """Return both servers, ours at one instruction-set level."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ISA_VARIABLE, request.param)
            ours = stack.enter_context(running_server(proto=PROTOCOL, threads=2))
        both = Servers([str(program)], ours.endpoint)
        stack.callback(both.stop)
        yield both


def result(endpoint: str, example: Example) -> tuple[Tensor, bytes]:
    """Compute an example on a server, its sources filled with random numbers seeded by its name."""
    with RawClient(endpoint, DIALECT, timeout=5.0) as client:
        buffer = client.alloc(BUFFER_BYTES)
        client.clear(buffer.handle)
        node = example.build(Arena(buffer.handle, buffer.base, buffer.size))
        rng = np.random.default_rng(zlib.crc32(example.id.encode()))
        for slot, source in enumerate(node.src):
            if source is not None:
                client.set(source, contents(node, slot, rng))
        client.compute([node])
        return node, client.get(node)


@pytest.mark.parametrize("example", SHARED, ids=lambda e: e.id)
def test_examples(pair: Servers, hold: Callable[[list[Deviation]], None], example: Example) -> None:
    node, theirs = result(pair.stock, example)
    hold([compare(node, result(pair.ours, example)[1], theirs, example.id)])
