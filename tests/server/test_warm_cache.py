"""A tensor of the cache whose file was verified is read behind the answer; nobody sees it before all of it is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggml_rpc.server import Server, cache, verified
from ggml_rpc.server._session import Session
from ggml_rpc.server.verified import Stamp, stamp_of
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import find
from ggml_rpc.wire._hash import fnv1a_64
from tests.support.rawclient import RawClient, frame
from tests.support.wiretensor import Arena

MIB = 1 << 20
FLOATS = 2 * MIB  # 8 MiB
TENSORS = 4


class Model:
    """Tensors that lie in the cache, and as many places for them on the server."""

    def __init__(self, folder: Path, endpoint: str, client: RawClient) -> None:
        self.endpoint = endpoint
        self.client = client
        rng = np.random.default_rng(5)
        self.data = [rng.standard_normal(FLOATS, dtype=np.float32) for _ in range(TENSORS)]
        self.hashes = [fnv1a_64(d.tobytes()) for d in self.data]
        for value, d in zip(self.hashes, self.data, strict=True):
            (folder / f"{value:016x}").write_bytes(d.tobytes())
        buffer = client.alloc((TENSORS + 2) * 4 * FLOATS)
        arena = Arena(buffer.handle, buffer.base, buffer.size)
        self.tensors = [arena.leaf("F32", (FLOATS,), f"w{i}") for i in range(TENSORS)]
        self.other = arena.leaf("F32", (64,), "other")
        self.total = arena.node("ADD", "F32", (FLOATS,), self.tensors[:2], name="total")

    def ask(self, i: int) -> None:
        assert self.client.set_hash(self.tensors[i], self.hashes[i]) == 1

    def expect(self, i: int) -> None:
        assert np.array_equal(np.frombuffer(self.client.get(self.tensors[i]), np.float32), self.data[i])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """Return a model whose files the server has verified."""
    monkeypatch.setattr(verified, "SETTLED_NS", -(10**12))  # files are trusted at once
    with (
        Server(port=0, threads=1, cache_dir=tmp_path) as server,
        RawClient(server.endpoint, find("8.0")) as client,
    ):
        model = Model(tmp_path, server.endpoint, client)
        for i, tensor in enumerate(model.tensors):
            model.ask(i)
            client.memset(tensor, 0)
        yield model


def test_what_is_read_is_whole(model: Model) -> None:
    for i in range(TENSORS):
        model.ask(i)
    for i in reversed(range(TENSORS)):
        model.expect(i)


def test_a_graph_waits_for_its_weights(model: Model) -> None:
    model.ask(0)
    model.ask(1)
    model.client.compute([model.total])
    total = np.frombuffer(model.client.get(model.total), np.float32)
    assert np.array_equal(total, model.data[0] + model.data[1])


def test_what_is_sent_later_stays(model: Model) -> None:
    last = 4 * (FLOATS - 1)
    model.ask(0)
    model.client.set(model.tensors[0], b"\1\2\3\4", offset=last)
    model.client.set(model.other, bytes(range(256)))
    model.ask(1)
    model.client.set(model.other, bytes(range(255, -1, -1)))  # beside the one that is read
    assert model.client.get(model.tensors[0], offset=last, size=4) == b"\1\2\3\4"
    assert model.client.get(model.other) == bytes(range(255, -1, -1))
    model.expect(1)


def test_more_files_at_once_than_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client need not wait for an answer before it asks for the next tensor."""
    monkeypatch.setattr(verified, "SETTLED_NS", -(10**12))
    size, count = MIB, 40
    data = [bytes([i]) * size for i in range(count)]
    hashes = [fnv1a_64(d) for d in data]
    for value, d in zip(hashes, data, strict=True):
        (tmp_path / f"{value:016x}").write_bytes(d)
    dialect = find("8.0")
    with Server(port=0, threads=1, cache_dir=tmp_path) as server, RawClient(server.endpoint, dialect) as client:
        buffer = client.alloc((count + 1) * size)
        arena = Arena(buffer.handle, buffer.base, buffer.size)
        tensors = [arena.leaf("I8", (size,), f"w{i}") for i in range(count)]
        for tensor, value in zip(tensors, hashes, strict=True):
            assert client.set_hash(tensor, value) == 1  # the file is verified now
            client.memset(tensor, 0xFF)
        payloads = [client.hash_payload(tensor, value) for tensor, value in zip(tensors, hashes, strict=True)]
        client.send_raw(b"".join(frame(dialect.commands[Command.SET_TENSOR_HASH], payload) for payload in payloads))
        assert [client.reply()[0] for _ in tensors] == count * [1]
        assert [client.get(tensor) for tensor in tensors] == data


def test_the_same_place_twice(model: Model) -> None:
    for i in range(TENSORS):
        assert model.client.set_hash(model.tensors[0], model.hashes[i]) == 1
    assert np.array_equal(np.frombuffer(model.client.get(model.tensors[0]), np.float32), model.data[-1])


def test_a_freed_buffer_and_a_client_that_leaves(model: Model) -> None:
    for i in range(TENSORS):
        with RawClient(model.endpoint, find("8.0")) as other:
            buffer = other.alloc(4 * FLOATS)
            tensor = Arena(buffer.handle, buffer.base, buffer.size).leaf("F32", (FLOATS,), "w")
            assert other.set_hash(tensor, model.hashes[i]) == 1
            if i % 2:
                other.free(buffer.handle)
    model.ask(0)
    model.expect(0)


def test_a_file_that_shrinks_meanwhile_ends_the_session(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer was given when the loss shows, so no later command may see the tensor."""
    path = tmp_path / f"{model.hashes[0]:016x}"
    fd = os.open(path, os.O_RDONLY)
    before: Stamp = stamp_of(fd)
    os.close(fd)
    os.truncate(path, 4 * FLOATS - 1)
    monkeypatch.setattr(cache, "stamp_of", lambda _: before)
    model.ask(0)
    with caplog.at_level(logging.WARNING), pytest.raises(ConnectionError):
        model.client.get(model.tensors[0])
    assert "changed while it was read" in caplog.text


def test_a_disk_that_is_full_costs_only_the_copy(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytes(range(256)) * (FLOATS // 64)
    full = os.open("/dev/full", os.O_WRONLY)
    store = Session.store

    class Unlucky:
        """A session whose files take nothing."""

        def __init__(self, session: Session) -> None:
            self.session = session

        def __getattr__(self, name: str) -> object:
            return getattr(self.session, name)

        def store(self, _: int) -> None:
            store(self.session, full)

    keep = cache.TensorCache.store
    monkeypatch.setattr(cache.TensorCache, "store", lambda self, session: keep(self, Unlucky(session)))
    kept = sorted(tmp_path.iterdir())
    with caplog.at_level(logging.WARNING):
        model.client.set(model.tensors[0], data, cache_flag=1)
        assert model.client.get(model.tensors[0]) == data
    os.close(full)
    assert "No space left on device" in caplog.text
    assert sorted(tmp_path.iterdir()) == kept
