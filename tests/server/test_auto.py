"""`--proto auto`: clients of every dialect are served, with the numbers that they mean."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from ggml_rpc.server.offers import MAX_ADDRESSES
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from tests.server.stock import (
    Work,
    accepts,
    attempt,
    auto_server,
    join,
    leave,
    most_failures,
    visit,
    wait_until_left,
)
from tests.support.rawclient import RawClient, frame, split_endpoint
from tests.support.wiretensor import graph_payload
from tests.wire.session import ServerLog, captured_log


@pytest.fixture
def log() -> Iterator[ServerLog]:
    """Collect the server's log."""
    with captured_log() as lines:
        yield lines


@pytest.mark.parametrize("name", dialects.NAMES)
def test_each_dialect_is_served_and_computes_right(name: str) -> None:
    """After at most as many failures as there are other numbers; a second client of it fails no more."""
    dialect = dialects.find(name)
    with auto_server() as server:
        client, failures = join(server, dialect)
        assert failures <= most_failures(dialect)
        Work(client).check()
        leave(server, client)
        client, failures = join(server, dialect)
        assert failures == 0
        Work(client).check()
        client.close()


@pytest.mark.parametrize("name", ["8.0.0", "7.0.0", "6.0.0", "5.1.0", "4.0.2", "3.6.1", "3.0.0", "2.0.0", "ik-5.5.5"])
def test_short_connections_come_first(name: str) -> None:
    """Stock clients ask in connections of their own before the one that stays."""
    dialect = dialects.find(name)
    with auto_server() as server:
        failures = sum(visit(server, dialect) for _ in range(6))
        assert failures <= most_failures(dialect)
        client, failures = join(server, dialect)
        assert failures == 0
        Work(client).check()
        client.close()


def test_the_log_says_what_was_refused_and_how_to_fix_it(log: ServerLog) -> None:
    with auto_server() as server:
        assert attempt(server, dialects.find("7.0.0")) is None
        line = log.wait_for(lambda line: "left after we announced" in line)
        assert "127.0.0.1" in line
        assert "left after we announced 8.0.0" in line
        assert "offering 7.0.0 next" in line
        assert "--proto 7.0.0" in line


def test_the_log_names_the_empty_hello_too(log: ServerLog) -> None:
    with auto_server() as server:
        assert attempt(server, dialects.find("2.0.0")) is None
        line = log.wait_for(lambda line: "left after we announced" in line)
        assert "left after we announced 3.5.0" in line
        assert "--proto 3.0.0" in line


def test_a_client_that_stays_is_not_reported(log: ServerLog) -> None:
    with auto_server() as server:
        assert visit(server, dialects.find("8.0.0")) == 0
        assert visit(server, dialects.find("3.6.1")) == 0
    assert not [line for line in log.lines if "left after" in line]


def test_a_client_that_resets_is_seen_to_have_left(log: ServerLog) -> None:
    """An abort of the client's process may end the connection by a reset."""
    with auto_server() as server:
        with RawClient(server.endpoint, dialects.find("7.0.0")) as client:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        log.wait_for(lambda line: "left after we announced 8.0.0" in line)
        wait_until_left(server, 0)
        accepted = attempt(server, dialects.find("7.0.0"))
        assert accepted is not None
        accepted.close()


# ---- What an address is offered next ------------------------------------------------------------------------------


def test_what_worked_is_tried_first() -> None:
    old, new = dialects.find("5.0.0"), dialects.find("7.0.0")
    with auto_server() as server:
        assert visit(server, old) == 3
        assert [visit(server, old) for _ in range(3)] == [0, 0, 0]
        assert visit(server, new) <= most_failures(new)
        assert visit(server, new) == 0


@pytest.mark.parametrize(
    ("one", "other"), [("8.0.0", "7.0.0"), ("4.0.3", "6.0.0"), ("2.0.0", "3.6.1"), ("ik", "2.0.0")]
)
def test_alternating_versions_cost_one_attempt_a_switch(one: str, other: str) -> None:
    pair = dialects.find(one), dialects.find(other)
    with auto_server() as server:
        for d in pair:
            visit(server, d)
        for _ in range(3):
            for d in pair:
                assert visit(server, d) <= 1
                assert visit(server, d) == 0


def test_lengths_of_hello_do_not_disturb_each_other() -> None:
    with auto_server() as server:
        visit(server, dialects.find("2.0.0"))
        visit(server, dialects.find("4.0.0"))
        assert visit(server, dialects.find("2.0.0")) == 0
        assert visit(server, dialects.find("4.0.0")) == 0


def test_a_live_session_is_not_disturbed() -> None:
    """While it lives its address is offered what it speaks, and nothing that others do reaches it."""
    with auto_server() as server:
        client, _ = join(server, dialects.find("7.0.0"))
        work = Work(client)
        work.check()
        for name in ("8.0.0", "5.0.0", "8.0.0", "4.0.0"):
            assert attempt(server, dialects.find(name)) is None
            work.check()
        beside = attempt(server, dialects.find("7.0.0"))
        assert beside is not None
        Work(beside).check()
        work.check()
        beside.close()
        leave(server, client)
        # Free again: the other version is found as ever.
        client, failures = join(server, dialects.find("8.0.0"))
        assert failures <= most_failures(client.dialect)
        Work(client).check()
        client.close()


def test_a_live_session_of_the_other_hello_does_not_hold_back() -> None:
    with auto_server() as server:
        client, _ = join(server, dialects.find("7.0.0"))
        work = Work(client)
        other, failures = join(server, dialects.find("2.0.0"))
        assert failures <= most_failures(other.dialect)
        Work(other).check()
        work.check()
        other.close()
        client.close()


# ---- One number that clients of another way of speaking accept as well ---------------------------------------------


def test_a_later_client_recovers_from_an_earlier_ones_number(log: ServerLog) -> None:
    """Clients of 3.6.1 accept 3.0.0 too: what they then send shows it, and the next attempt is offered 3.5.0."""
    old, new = dialects.find("3.0.0"), dialects.find("3.6.1")
    with auto_server() as server:
        visit(server, old)
        client, _ = join(server, new)
        assert client.server is not None
        assert client.server.version == (3, 0, 0)
        with pytest.raises(ConnectionError):
            client.alloc_size(Work(client).a)
        client.close()
        wait_until_left(server, 0)
        log.wait_for(lambda line: "may speak a later protocol than 3.0.0; offering 3.5.0 next" in line)
        client, failures = join(server, new)
        assert failures == 0
        Work(client).check()
        leave(server, client)
        assert visit(server, new) == 0
        assert visit(server, old) <= 1


@pytest.mark.parametrize("name", ["3.5.0", "3.6.0@2025-12-05", "3.6.0@2026-01-19", "ik-3.5.1", "ik-3.5.2"])
def test_a_later_client_never_sees_the_earlier_ones_answer(name: str) -> None:
    """It goes on after GRAPH_COMPUTE at once: an answer would shift all that follows. The session ends instead."""
    old, new = dialects.find("3.0.0"), dialects.find(name)
    with auto_server() as server:
        visit(server, old)
        client, failures = join(server, new)
        assert failures == 0
        # Both requests in one write: what comes second is there when the graph has run. A record of another size is
        # refused before.
        with contextlib.suppress(ConnectionError):
            work = Work(client)
            payload = graph_payload(new, work.nodes, uid=3)
            read = work.nodes[-1].pack(new) + struct.pack("<QQ", 0, work.nodes[-1].nbytes())
            client.send_raw(frame(Command.GRAPH_COMPUTE, payload) + frame(Command.GET_TENSOR, read))
            assert client.closed_by_peer()
        client.close()
        wait_until_left(server, 0)
        client, failures = join(server, new)
        assert failures == 0
        Work(client).check()
        leave(server, client)
        assert visit(server, old) <= 1


def test_garbage_of_an_earlier_client_costs_it_one_attempt() -> None:
    old = dialects.find("3.0.0")
    with auto_server() as server:
        visit(server, old)
        client, _ = join(server, old)
        client.memory()
        client.send(200)
        assert client.closed_by_peer()
        client.close()
        wait_until_left(server, 0)
        assert visit(server, old) == 1
        assert visit(server, old) == 0


# ---- Hostile clients ----------------------------------------------------------------------------------------------


def test_hello_of_other_lengths_is_refused(log: ServerLog) -> None:
    with auto_server() as server:
        client, _ = join(server, dialects.find("7.0.0"))
        work = Work(client)
        for length in (1, 3, 8, 23, 25, 28, 255, 4096, 1 << 32, 1 << 63, (1 << 64) - 1):
            log.clear()
            with socket.create_connection(split_endpoint(server.endpoint), timeout=20) as bare:
                bare.sendall(frame(Command.HELLO, bytes(min(length, 64)), length))
                with contextlib.suppress(ConnectionError):
                    assert bare.recv(1) == b"", f"HELLO of {length} bytes is answered"
            log.wait_for(lambda line: "HELLO" in line and "bytes" in line)
        work.check()
        client.close()


def test_hanging_up_in_a_loop_changes_nothing_for_a_session() -> None:
    """A client that says HELLO and leaves, again and again, at any point."""
    hello = frame(Command.HELLO, bytes(24))
    with auto_server() as server:
        client, _ = join(server, dialects.find("7.0.0"))
        work = Work(client)
        for i in range(150):
            with socket.create_connection(split_endpoint(server.endpoint), timeout=20) as bare:
                bare.sendall(hello[: i % (len(hello) + 1)])
                if i % 3 == 0:
                    bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if i % 50 == 0:
                work.check()
        wait_until_left(server, 1)
        work.check()
        assert attempt(server, dialects.find("8.0.0")) is None
        beside = attempt(server, dialects.find("7.0.0"))
        assert beside is not None
        beside.close()
        client.close()


def test_hanging_up_in_a_loop_only_delays_others() -> None:
    """Someone at the address rotates the offers; a client is still found within one round of them."""
    with auto_server() as server:
        for rounds in range(7):
            for _ in range(rounds):
                probe = RawClient(server.endpoint, dialects.find("8.0.0"))
                probe.close()
                wait_until_left(server, 0)
            dialect = dialects.find("5.1.0")
            client, failures = join(server, dialect)
            assert failures <= most_failures(dialect) + 1
            client.memory()
            leave(server, client)


def test_the_rule_of_acceptance() -> None:
    """What these tests take for stock clients accept what stock clients accept."""
    assert accepts(dialects.find("5.1.0"), (5, 0, 0))
    assert accepts(dialects.find("4.0.0"), (4, 0, 3))
    assert not accepts(dialects.find("5.0.0"), (5, 1, 0))
    assert not accepts(dialects.find("5.0.0"), (4, 0, 0))
    assert MAX_ADDRESSES >= 1024
