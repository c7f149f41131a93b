"""Clients that behave as stock ones do, for servers that find out what a client speaks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ggml_rpc.server import Server
from ggml_rpc.server.protocols import CANDIDATES
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.spec.enums import GluKind, UnaryKind
from tests.support.rawclient import RawClient
from tests.support.wiretensor import Arena, Tensor

BUFFER_BYTES = 1 << 16
SECONDS = 20.0


@contextmanager
def auto_server(**options: object) -> Iterator[Server]:
    """Run a server that finds out what its clients speak."""
    with Server(devices="CPU", port=0, threads=1, protocols="auto", **options) as server:  # type: ignore[arg-type]
        yield server


def accepts(dialect: Dialect, version: tuple[int, ...]) -> bool:
    """Return whether a stock client of this dialect stays with a server that announces `version`."""
    return version[0] == dialect.announce[0] and version[1] <= dialect.announce[1]


def wait_until_left(server: Server, n_connections: int) -> None:
    """Wait until the server has noticed that a client is gone."""
    deadline = time.monotonic() + SECONDS
    while server.n_connections > n_connections:
        assert time.monotonic() < deadline, "the server does not notice that its client left"
        time.sleep(0.002)


def attempt(server: Server, dialect: Dialect) -> RawClient | None:
    """Connect once; leave as a stock client does when it does not like the number."""
    before = server.n_connections
    client = RawClient(server.endpoint, dialect)
    assert client.server is not None
    if accepts(dialect, client.server.version):
        return client
    client.close()
    wait_until_left(server, before)
    return None


def join(server: Server, dialect: Dialect) -> tuple[RawClient, int]:
    """Connect until the number is accepted; return the client and how often it failed."""
    for failures in range(20):
        client = attempt(server, dialect)
        if client is not None:
            return client, failures
    raise AssertionError(f"a client of {dialect.name} is not served")


def leave(server: Server, client: RawClient) -> None:
    """Close the only connection, and wait until the server knows."""
    client.close()
    wait_until_left(server, 0)


def visit(server: Server, dialect: Dialect) -> int:
    """Join, ask for the free memory, leave; return the failed attempts."""
    client, failures = join(server, dialect)
    client.memory()
    leave(server, client)
    return failures


def most_failures(dialect: Dialect) -> int:
    """Return how many attempts may fail before a client of this dialect is served."""
    return len(CANDIDATES[dialect.hello_request]) - 1


class Work:
    """A buffer and a graph of four ops whose numbers differ between tables."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.buffer = client.alloc(BUFFER_BYTES)
        self.arena = Arena(self.buffer.handle, self.buffer.base, BUFFER_BYTES)
        rng = np.random.default_rng(5)
        self.values = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 32), (4, 32), (6, 32), (6,))]
        self.a, self.b, self.w, self.c = (
            self.leaf(v, name) for v, name in zip(self.values, ("a", "b", "w", "c"), strict=True)
        )
        i = np.array([int(UnaryKind.SILU)], np.int32).tobytes()
        glu = np.array([int(GluKind.REGLU), 0], np.int32).tobytes()
        add = self.arena.node("ADD", "F32", (32, 4), [self.a, self.b])
        product = self.arena.node("MUL_MAT", "F32", (6, 4), [self.w, add])
        silu = self.arena.node("UNARY", "F32", (6, 4), [product], params=i)
        shifted = self.arena.node("ADD", "F32", (6, 4), [silu, self.c])
        self.nodes = [add, product, silu, shifted]
        self.nodes.append(self.arena.node("GLU", "F32", (6, 4), [shifted, silu], params=glu, name="result"))

    def leaf(self, values: np.ndarray, name: str) -> Tensor:
        """Place and set a tensor."""
        t = self.arena.leaf("F32", values.shape[::-1], name)
        self.client.set(t, values.tobytes())
        return t

    def expected(self) -> np.ndarray:
        """Return the result in f64."""
        a, b, w, c = (v.astype(np.float64) for v in self.values)
        product = (a + b) @ w.T
        silu = product / (1 + np.exp(-product))
        return np.maximum(silu + c, 0) * silu

    def result(self) -> np.ndarray:
        """Read the result."""
        return np.frombuffer(self.client.get(self.nodes[-1]), np.float32).reshape(4, 6)

    def check(self) -> None:
        """Run the graph twice, as the dialect's clients do, and compare."""
        for again in (False, True):
            self.client.memset(self.nodes[-1], 0x55)
            if again:
                self.client.run_again(self.nodes, uid=3)
            else:
                self.client.compute(self.nodes, uid=3)
            np.testing.assert_allclose(self.result(), self.expected(), rtol=1e-5, atol=1e-5)
