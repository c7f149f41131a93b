"""Which table a connection speaks, and what it says of peers that it cannot speak with."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ggml_rpc.client.connection import Connection
from ggml_rpc.errors import ConnectionLost, DeadlineExceeded, ServerRefused, VersionMismatch
from ggml_rpc.server import Server
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.transport.tcp import parse_endpoint
from tests.server.stock import auto_server, wait_until_left
from tests.support.wiretensor import Arena
from tests.wire.kinds import KINDS

from .fakeserver import SECONDS, FakeServer, Leave, Peer, Script, WiredClient, answering


def check_served(connection: Connection) -> None:
    """Write, compute and read over a connection."""
    client = WiredClient(connection)
    buffer = client.alloc(1 << 12)
    arena = Arena(buffer.handle, buffer.base, 1 << 12)
    a = arena.leaf("F32", (4,), "a")
    b = arena.leaf("F32", (4,), "b")
    total = arena.node("ADD", "F32", (4,), [a, b])
    client.clear(buffer.handle)
    client.set(a, struct.pack("<4f", 1, 2, 3, 4))
    client.set(b, struct.pack("<4f", 10, 20, 30, 40))
    client.compute([total], uid=1)
    client.run_again([total], uid=1)
    assert struct.unpack("<4f", client.get(total)) == (11, 22, 33, 44)
    client.free(buffer.handle)
    assert client.alignment() >= 32


@pytest.mark.parametrize("name", dialects.NAMES)
def test_speaks_what_a_server_announces(name: str) -> None:
    spoken = dialects.find(name)
    with (
        Server(devices="CPU", port=0, threads=1, protocols=name) as server,
        Connection(server.endpoint) as connection,
    ):
        assert connection.announced == spoken.announce
        assert connection.dialect is connection.candidates[0]
        assert spoken in connection.candidates
        assert {c.announce for c in connection.candidates} == {spoken.announce}
        assert {c.record.size for c in connection.candidates} == {spoken.record.size}
        order = [dialects.DIALECTS.index(c) for c in connection.candidates]
        assert order == sorted(order, reverse=True), "the newest comes first"
        assert WiredClient(connection).alignment() >= 32


@pytest.mark.parametrize("name", KINDS)
def test_is_served_in_each_kind_of_dialect(name: str) -> None:
    with Server(devices="CPU", port=0, threads=1, protocols=name) as server:
        with Connection(server.endpoint, dialect=name) as connection:
            assert connection.candidates == (dialects.find(name),)
            check_served(connection)
        with Connection(server.endpoint) as connection:
            check_served(connection)


@pytest.mark.parametrize("seconds", [1e10, 1e300, float("inf")])
def test_times_may_be_endless(seconds: float) -> None:
    with (
        Server(devices="CPU", port=0, threads=1) as server,
        Connection(server.endpoint, timeout=seconds, connect_timeout=seconds) as connection,
    ):
        check_served(connection)


@pytest.mark.parametrize("name", KINDS)
def test_a_named_dialect_is_spoken_with_a_server_that_finds_it_out(name: str) -> None:
    with auto_server() as server, Connection(server.endpoint, dialect=name) as connection:
        assert connection.dialect.name == name
        check_served(connection)


def test_leaving_at_once_does_not_change_what_a_server_offers() -> None:
    with auto_server() as server:
        for _ in range(3):
            with Connection(server.endpoint) as connection:
                assert connection.announced == (8, 0, 0)
            wait_until_left(server, 0)


# ---- Numbers that a server may announce ------------------------------------------------------------------------------


def test_an_unknown_patch_is_taken_for_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    expected = {(7, 0, 9): "7.0.0", (4, 0, 9): "4.0.3", (3, 6, 4): "3.6.1"}
    for version, name in expected.items():
        caplog.clear()
        with (
            FakeServer(answering(Peer.hang, version=version)) as server,
            caplog.at_level(logging.WARNING, "ggml_rpc"),
            Connection(server.endpoint) as connection,
        ):
            assert connection.dialect.name == name
            assert connection.announced == version
        (line,) = caplog.messages
        assert ".".join(map(str, version)) in line
        assert f"speaking {name}" in line


@pytest.mark.parametrize("version", [(9, 0, 0), (5, 3, 0), (8, 1, 0), (0, 0, 0), (1, 0, 0), (3, 4, 0), (3, 5, 7)])
def test_an_unknown_number_is_refused(version: tuple[int, ...]) -> None:
    with (
        FakeServer(answering(Peer.hang, version=version)) as server,
        pytest.raises(VersionMismatch, match="not known") as failure,
    ):
        Connection(server.endpoint)
    line = str(failure.value)
    assert server.endpoint in line
    assert ".".join(map(str, version)) in line
    assert "8.0.0" in line
    assert "ik 5.5.5" in line


def test_an_unknown_number_is_spoken_by_name() -> None:
    with (
        FakeServer(answering(Peer.hang, version=(5, 3, 0))) as server,
        Connection(server.endpoint, dialect="5.1") as connection,
    ):
        assert connection.dialect.name == "5.1.0"
        assert connection.announced == (5, 3, 0)


def test_a_named_dialect_of_another_number_is_refused() -> None:
    with (
        FakeServer(answering(Peer.hang, version=(8, 0, 0))) as server,
        pytest.raises(VersionMismatch, match=r"announces protocol 8\.0\.0, which is no 7\.0\.0"),
    ):
        Connection(server.endpoint, dialect="7.0")


def test_numbers_of_ik_llama_cpp_are_told_by_the_reply() -> None:
    def script(peer: Peer) -> None:
        peer.hello(5, 5, 5, size=3)
        peer.hang()

    with FakeServer(script) as server, Connection(server.endpoint) as connection:
        assert connection.dialect.name == "ik-5.5.5"
        assert server.n_served == 2, "the HELLO of 24 bytes is tried first"


# ---- The size of ik_llama.cpp's records ------------------------------------------------------------------------------


def ik_server(record_bytes: int) -> Script:
    """Serve GET_ALLOC_SIZE of one length, once a connection; leave at any other."""

    def script(peer: Peer) -> None:
        peer.hello(3, 5, 2)
        number, payload = peer.request()
        assert number == Command.GET_ALLOC_SIZE
        if len(payload) != 4 + record_bytes:
            raise Leave
        peer.reply(struct.pack("<Q", 128))
        peer.hang()

    return script


@pytest.mark.parametrize(("record_bytes", "newest", "n_connections"), [(344, "", 2), (312, "@2026-05-19", 3)])
def test_the_record_is_found_out_one_connection_at_a_time(record_bytes: int, newest: str, n_connections: int) -> None:
    with FakeServer(ik_server(record_bytes)) as server, Connection(server.endpoint) as connection:
        assert connection.dialect.name == f"ik-3.5.2{newest}"
        assert {c.record.size for c in connection.candidates} == {record_bytes}
        assert server.n_served == n_connections


def test_records_of_all_sizes_are_tried_and_then_given_up() -> None:
    with FakeServer(ik_server(376)) as server, pytest.raises(VersionMismatch, match="344, 312, 296 bytes"):
        Connection(server.endpoint)
    assert server.n_served == 4


def test_a_server_may_not_change_its_number_meanwhile() -> None:
    def changed(peer: Peer) -> None:
        peer.hello(3, 5, 1)

    with (
        FakeServer(ik_server(376), ik_server(376), changed) as server,
        pytest.raises(VersionMismatch, match=r"3\.5\.2 and then 3\.5\.1"),
    ):
        Connection(server.endpoint)


def test_a_server_that_hangs_at_the_query_is_given_up() -> None:
    with (
        FakeServer(answering(Peer.hang, version=(3, 5, 2))) as server,
        pytest.raises(DeadlineExceeded, match=r"did not answer GET_ALLOC_SIZE within 0\.1 s"),
    ):
        Connection(server.endpoint, connect_timeout=0.1)


# ---- Peers that are no servers ---------------------------------------------------------------------------------------


def say(data: bytes, then: Script = Peer.hang) -> Script:
    """Take HELLO and answer with these bytes."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(data)
        then(peer)

    return script


def leave(peer: Peer) -> None:
    """Close the connection."""
    raise Leave


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack("<Q", 0),
        struct.pack("<Q", 4) + bytes(4),
        struct.pack("<Q", 1 << 63),
    ],
    ids=["http", "empty", "four", "huge"],
)
def test_another_protocol_is_named_as_such(data: bytes) -> None:
    with (
        FakeServer(say(data)) as server,
        pytest.raises(VersionMismatch, match=f"{server.endpoint} does not speak this protocol: it answered HELLO"),
    ):
        Connection(server.endpoint)


@pytest.mark.parametrize(
    ("script", "error", "text"),
    [
        (leave, ServerRefused, "closed the connection after HELLO"),
        (say(b"", Peer.reset), ServerRefused, "closed the connection after HELLO"),
        (say(b"", leave), ServerRefused, "closed the connection after HELLO"),
        (say(b"\x1c\0\0", leave), ConnectionLost, "within its answer to HELLO"),
        (say(struct.pack("<Q", 28) + b"\x08", leave), ConnectionLost, "within its answer to HELLO"),
        (Peer.hang, DeadlineExceeded, "did not answer HELLO within 0.1 s"),
        (say(b"\x1c\0\0"), DeadlineExceeded, "did not answer HELLO within 0.1 s"),
        (say(struct.pack("<Q", 28) + b"\x08"), DeadlineExceeded, "did not answer HELLO within 0.1 s"),
    ],
    ids=["close", "reset", "answer-close", "header-close", "body-close", "hang", "header-hang", "body-hang"],
)
def test_a_broken_hello(script: Script, error: type[Exception], text: str) -> None:
    patience = 0.1 if error is DeadlineExceeded else SECONDS
    with FakeServer(script) as server, pytest.raises(error) as failure:
        Connection(server.endpoint, connect_timeout=patience)
    assert type(failure.value) is error
    assert text in str(failure.value)
    assert server.endpoint in str(failure.value)


def test_a_reset_at_the_long_hello_falls_back_to_the_short() -> None:
    with (
        FakeServer(say(b"", Peer.reset), answering(Peer.hang, version=(3, 6, 1))) as server,
        Connection(server.endpoint) as connection,
    ):
        assert connection.dialect.name == "3.6.1"


# ---- Reaching a server -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("", "no host"),
        (":50052", "no host"),
        ("host:", "'' is no port"),
        ("host:0", "'0' is no port"),
        ("host:65536", "'65536' is no port"),
        ("host:5o052", "'5o052' is no port"),
        ("host:-1", "'-1' is no port"),
        ("::1", "brackets"),
        ("::1:50052", "brackets"),
        ("[::1", "brackets"),
        ("[::1]50052", "brackets"),
        ("[localhost]:1", "no IPv6 address"),
        ("two words:1", "is no host"),
        ("http://host:1", "brackets"),
        ("host/path:1", "is no host"),
        ("a\x1b[2Jb:1", "is no host"),
        ("a\0b:1", "is no host"),
        ("host:" + "9" * 5000, "is no port"),
    ],
)
def test_malformed_endpoints_are_named(endpoint: str, text: str) -> None:
    with pytest.raises(ValueError, match="host:port") as failure:
        Connection(endpoint)
    assert repr(endpoint) in str(failure.value)
    assert text in str(failure.value)


@pytest.mark.parametrize("arguments", [{"dialect": "8.1"}, {"timeout": 0.0}, {"connect_timeout": -1.0}])
def test_wrong_arguments_are_refused_before_anything_is_sent(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"known are|positive"):
        Connection("127.0.0.1:1", **arguments)  # type: ignore[arg-type]


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ConnectionLost, match=f"cannot connect to {endpoint}: Connection refused"):
        Connection(endpoint)


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ConnectionLost, match="cannot connect to worker:50052: Name or service not known"):
        Connection("worker")


@pytest.fixture
def full_listener() -> Iterator[str]:
    """Return an endpoint that takes no further connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):  # of which one or two are taken and the rest wait
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_a_text_that_can_be_no_name(host: str) -> None:
    with pytest.raises(ConnectionLost, match=f"cannot connect to {host}:1: it can be no host's name"):
        Connection(f"{host}:1")


def test_connecting_has_a_deadline(full_listener: str) -> None:
    with pytest.raises(DeadlineExceeded, match=r"did not take the connection within 0\.1 s"):
        Connection(full_listener, connect_timeout=0.1)


def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()
    with FakeServer(answering(Peer.hang)) as server:
        port = int(server.endpoint.rpartition(":")[2])
        asked = []

        def resolve(host: str, port: int, **_: object) -> list[object]:
            asked.append((host, port))
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", a) for a in (dead, ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with Connection(f"worker:{port}") as connection:
            assert connection.endpoint == f"worker:{port}"
            assert asked == [("worker", port)]


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as e:
        pytest.skip(f"this machine has no IPv6: {e}")
    with (
        Server(devices="CPU", host="::1", port=0, threads=1, protocols="8.0.0") as server,
        Connection(server.endpoint) as connection,
    ):
        assert connection.endpoint.startswith("[::1]:")
        assert WiredClient(connection).alignment() >= 32


def test_a_name() -> None:
    with auto_server() as server, Connection(f"localhost:{server.endpoint.rpartition(':')[2]}") as connection:
        assert WiredClient(connection).alignment() >= 32


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("worker", ("worker", 50052)),
        ("worker:1", ("worker", 1)),
        ("[::1]", ("::1", 50052)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
    ],
)
def test_the_port_may_be_left_out(endpoint: str, parts: tuple[str, int]) -> None:
    assert parse_endpoint(endpoint, 50052) == parts
