"""The server inside another program: start, stop, protocols, addresses, devices."""

from __future__ import annotations

import logging
import socket
import struct
import time
from dataclasses import replace

import pytest

import ggml_rpc
from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.errors import DeviceError
from ggml_rpc.server import Server, parse_protocols
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import find
from tests.support.rawclient import RawClient
from tests.support.wiretensor import Arena, Tensor

MIB = 1 << 20


def arena_of(client: RawClient, size: int, device: int = 0) -> Arena:
    """Return an arena in a new buffer."""
    buffer = client.alloc(size, device)
    return Arena(buffer.handle, buffer.base, buffer.size)


def heavy_graph(client: RawClient, n_nodes: int) -> list[Tensor]:
    """Return n products of 4 GMAC, all into one place."""
    arena = arena_of(client, 64 * MIB)
    a, b = arena.leaf("F32", (1024, 1024), "a"), arena.leaf("F32", (1024, 4096), "b")
    for leaf in (a, b):
        client.memset(leaf, 0)
    first = arena.node("MUL_MAT", "F32", (1024, 4096), [a, b], name="product 0")
    nodes = [first]
    for i in range(1, n_nodes):
        nodes.append(replace(first, name=f"product {i}", id=first.id + i))
    return nodes


def test_package_exports_the_server() -> None:
    with ggml_rpc.Server(devices="CPU", port=0) as server, RawClient(server.endpoint, find("8.0")) as client:
        assert client.device_count() == 1


def test_two_protocols_on_two_ports() -> None:
    with Server(port=0, protocols="8.0,7.0@0") as server:
        first, second = server.endpoints
        assert first != second
        for endpoint, name in ((first, "8.0"), (second, "7.0")):
            with RawClient(endpoint, find(name)) as client:
                assert client.server is not None
                assert client.server[0] == find(name).announce


@pytest.mark.parametrize("text", ["9.9", "8.0,7.0", "8.0@x", "8.0@70000", "", "8.0,,7.0@1"])
def test_bad_protocol_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="protocol"):
        parse_protocols(text)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6() -> None:
    with Server(host="::1", port=0) as server:
        assert server.endpoint.startswith("[::1]:")
        port = int(server.endpoint.rpartition(":")[2])
        dialect = find("8.0")
        with socket.create_connection(("::1", port), timeout=10) as sock:
            sock.sendall(bytes([dialect.commands[Command.HELLO]]) + struct.pack("<Q", 24) + bytes(24))
            assert sock.recv(8, socket.MSG_WAITALL) == struct.pack("<Q", 28)


def test_unknown_device_names_those_there_are() -> None:
    with pytest.raises(DeviceError, match=r"unknown device 'CUDA7'.*CPU"):
        Server(devices="CUDA7", port=0)


def test_taken_port_is_named() -> None:
    with Server(port=0) as server:
        port = int(server.endpoint.rpartition(":")[2])
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            Server(port=port).start()


def test_open_devices_can_be_handed_in() -> None:
    pool = CpuPool(1)
    with (
        Server(devices=[pool.device("CPU"), pool.device("CPU")], port=0) as server,
        RawClient(server.endpoint, find("8.0")) as client,
    ):
        assert client.device_count() == 2
        assert client.memory(1)[1] > 0


def test_an_open_device_stands_once() -> None:
    """Runs are numbered by device: what frees memory could not tell the two apart."""
    device = CpuPool(1).device()
    with pytest.raises(ValueError, match="twice"):
        Server(devices=[device, device], port=0)


def test_close_does_not_wait_for_a_long_graph() -> None:
    server = Server(port=0, threads=1)
    server.start()
    client = RawClient(server.endpoint, find("8.0"))
    client.compute(heavy_graph(client, 2000))
    time.sleep(0.2)
    start = time.monotonic()
    server.close()
    assert time.monotonic() - start < 8, "the graph was not cancelled"
    assert server.n_connections == 0
    client.close()


def test_leaving_client_frees_the_device() -> None:
    """A client that hangs up while its graph runs gets it cancelled; the next client's graph runs at once."""
    with Server(port=0, threads=1) as server:
        client = RawClient(server.endpoint, find("8.0"))
        client.compute(heavy_graph(client, 2000))
        time.sleep(0.2)
        client.close()
        with RawClient(server.endpoint, find("8.0")) as other:
            nodes = heavy_graph(other, 1)
            other.compute(nodes)
            other.socket.settimeout(20)
            assert len(other.get(nodes[0], size=4)) == 4


def test_graph_timeout_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        Server(port=0, threads=1, graph_timeout=0.3) as server,
        RawClient(server.endpoint, find("8.0")) as client,
    ):
        nodes = heavy_graph(client, 2000)
        client.compute(nodes)
        with pytest.raises(ConnectionError):
            client.get(nodes[0], size=4)
    assert "graph timeout" in caplog.text


def test_failed_run_ends_the_session_at_the_next_command(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        Server(port=0, threads=1) as server,
        RawClient(server.endpoint, find("8.0")) as client,
    ):
        arena = arena_of(client, MIB)
        table, ids = arena.leaf("F32", (8, 4), "table"), arena.leaf("I32", (2,), "ids")
        client.memset(table, 0)
        client.set(ids, struct.pack("<2i", 1, 4))
        client.compute([arena.node("GET_ROWS", "F32", (8, 2), [table, ids], name="rows")])
        time.sleep(0.3)
        with pytest.raises(ConnectionError):
            client.memory()
    assert "index 4 in 'ids' is out of range" in caplog.text


def test_sessions_take_turns() -> None:
    """A session with a long queue of graphs does not hold up another one's single graph."""
    with (
        Server(port=0, threads=1) as server,
        RawClient(server.endpoint, find("8.0")) as busy,
        RawClient(server.endpoint, find("8.0")) as quick,
    ):
        nodes = heavy_graph(busy, 3)
        busy.compute(nodes, uid=1)
        for _ in range(40):
            busy.recompute(uid=1)
        small = heavy_graph(quick, 1)
        quick.compute(small)
        start = time.monotonic()
        quick.get(small[0], size=4)
        waited = time.monotonic() - start
        start = time.monotonic()
        busy.get(nodes[0], size=4)
        assert waited < time.monotonic() - start, "the single graph waited for the whole queue"
