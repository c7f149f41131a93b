"""Thousands of hostile connections in a row against a server process; its memory and a neighbour must not suffer.

`python -m tests.wire.soak --connections 10000 --seed 1` prints the server's resident memory before and after.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence

from ggml_rpc.peers.process import ServerProcess, own_server_command
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from tests.support.rawclient import RawClient
from tests.support.wiretensor import tensor
from tests.wire import frame_cases, graph_cases, tensor_cases
from tests.wire.near_misses import build, known, payload, spoils
from tests.wire.session import Attacker, Neighbour

Act = Callable[[Attacker, random.Random], None]

WARM_UP = 100
"""Connections before the first measurement: threads, allocator arenas and lazily loaded code have their size then."""


def _random_bytes(a: Attacker, rng: random.Random) -> None:
    a.client.send_raw(frame_cases.random_bytes(rng.getrandbits(32), a.dialect))


def _near_miss(a: Attacker, rng: random.Random) -> None:
    valid = rng.choice(known(a.dialect))
    a.client.clear(a.buffer.handle, 0)
    node = build(a, valid)
    rng.choice(list(spoils(valid, a.dialect)))[1](a, node)
    a.client.send(a.dialect.commands[Command.GRAPH_COMPUTE], payload(a, node))


def _flipped_graph(a: Attacker, rng: random.Random) -> None:
    """Send a valid graph with a few bytes changed anywhere."""
    a.client.clear(a.buffer.handle, 0)
    data = bytearray(payload(a, build(a, rng.choice(known(a.dialect)))))
    for _ in range(rng.randrange(1, 5)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    a.client.send(a.dialect.commands[Command.GRAPH_COMPUTE], bytes(data))


def _broken_off(a: Attacker, rng: random.Random) -> None:
    """Announce a large write and leave in the middle of it."""
    buffer = a.client.alloc(8 << 20)
    victim = tensor("F32", (1024, 2048), buffer=buffer.handle, data=buffer.base)
    flag = b"\0" if a.dialect.set_tensor_cache_flag else b""
    head = victim.pack(a.dialect) + flag + bytes(8)
    sent = rng.randrange(1 << 18)
    a.client.send(a.dialect.commands[Command.SET_TENSOR], head + bytes(sent), len(head) + victim.nbytes())
    a.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _left_behind(a: Attacker, rng: random.Random) -> None:
    """Allocate, store graphs, and leave without freeing anything."""
    for _ in range(rng.randrange(1, 20)):
        a.client.alloc(rng.randrange(1, 1 << 22))
    valid = rng.choice(known(a.dialect))
    a.client.clear(a.buffer.handle, 0)
    node = build(a, valid)
    for uid in range(rng.randrange(1, 30)):
        a.client.compute([node], uid=uid + 1)
    a.client.barrier()


def acts(dialect: dialects.Dialect) -> list[Act]:
    """Return everything that a hostile connection may do, the random kinds as often as all fixed cases together."""
    fixed = [*frame_cases.all_cases(dialect), *tensor_cases.all_cases(dialect), *graph_cases.all_cases(dialect)]
    kinds: list[Act] = [_random_bytes, _near_miss, _flipped_graph, _broken_off, _left_behind]

    def any_fixed(a: Attacker, rng: random.Random) -> None:
        rng.choice(fixed).act(a)

    return [any_fixed, any_fixed, any_fixed, *kinds]


def hostile_connection(endpoint: str, dialect: dialects.Dialect, menu: list[Act], rng: random.Random) -> None:
    """Open one connection, do something hostile, and leave, sometimes at once."""
    if rng.random() < 0.1:
        with RawClient(endpoint, dialect, hello=False) as client:
            client.send_raw(rng.choice(list(frame_cases.first_messages(dialect).values())))
        return
    with RawClient(endpoint, dialect) as client:
        try:
            rng.choice(menu)(Attacker(client), rng)
            if rng.random() < 0.7:
                client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(1 << 16):
                    pass
        except (ConnectionError, IndexError):
            # The server closed on the way, or answered a spoiled request with fewer bytes than a good one gets.
            return


def soak(connections: int, seed: int, dialect: dialects.Dialect) -> tuple[int, int]:
    """Run hostile connections against a fresh server process.

    Returns
    -------
    tuple of int
        Resident bytes of the server after the warm-up and at the end.

    Raises
    ------
    AssertionError
        If the server dies or its other client is disturbed.
    """
    rng = random.Random(seed)
    menu = acts(dialect)
    with ServerProcess(own_server_command(), ["--proto", dialect.name, "-t", "1"]) as server:
        neighbour = Neighbour(server.endpoint, dialect)
        before = 0
        for i in range(WARM_UP + connections):
            if i == WARM_UP:
                before = settled(server)
            hostile_connection(server.endpoint, dialect, menu, rng)
            if i % 25 == 0:
                neighbour.check()
            assert server.running(), f"the server died at connection {i}:\n{server.output()[-2000:]}"
        neighbour.check()
        after = settled(server)
        neighbour.close()
    return before, after


def settled(server: ServerProcess) -> int:
    """Return the resident bytes once they no longer fall."""
    lowest: int = server.rss_bytes()
    quiet = 0
    while quiet < 10:
        time.sleep(0.05)
        now = server.rss_bytes()
        quiet = quiet + 1 if now >= lowest else 0
        lowest = min(lowest, now)
    return lowest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Soak a server in hostile connections.")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--proto", default=dialects.DEFAULT.name)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    before, after = soak(options.connections, options.seed, dialects.find(options.proto))
    print(
        f"{options.connections} hostile connections in {time.monotonic() - started:.0f} s: resident memory "
        f"{before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
