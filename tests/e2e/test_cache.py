"""The tensor cache (`-c`) saves the transfer of large tensors and never serves wrong bytes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from .proxy import CountingProxy

pytestmark = pytest.mark.peer

BIG = 10 << 20  # tensors above this many bytes are cached


@pytest.fixture
def load(start_server, client, sequences, tmp_path):
    """Return a function that runs the client on a new server with the cache; it gives logits and bytes sent."""

    def run(before=None):
        server = start_server("8.0", "-c", LLAMA_CACHE=str(tmp_path))
        watcher = threading.Thread(target=before, args=(server.pid,)) if before else None
        if watcher:
            watcher.start()
        with CountingProxy(server.endpoint) as proxy:
            rows, _layers = client("8.0").logits([sequences[7]], [proxy.endpoint])
        if watcher:
            watcher.join()
        assert server.running()
        server.stop()
        return np.array(rows[0]), proxy.sent

    return run


@pytest.fixture
def cached(load, tmp_path):
    """Fill the cache; return the logits, the bytes it took, and the largest file."""
    rows, sent = load()
    files = sorted((tmp_path / "rpc").iterdir(), key=lambda file: file.stat().st_size)
    assert files
    assert files[-1].stat().st_size > BIG
    assert all(len(file.name) == 16 and set(file.name) <= set("0123456789abcdef") for file in files)
    return rows, sent, files[-1]


@pytest.fixture
def only_ours(server_is_stock):
    """Skip where stock's own server stands in: it trusts a file's name and length."""
    if server_is_stock:
        pytest.skip("stock serves whatever lies in the cache")


def test_hit_saves_the_transfer(load, cached):
    rows, sent, file = cached
    size = file.stat().st_size
    stamp = file.stat().st_mtime_ns
    again, sent_again = load()
    assert sent_again < sent - size + BIG
    assert file.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(again, rows)


def test_corrupt_file_is_not_served(only_ours, load, cached):
    rows, sent, file = cached
    size = file.stat().st_size
    with open(file, "r+b") as handle:
        handle.seek(size // 2)
        handle.write(bytes(4096))
    again, sent_again = load()
    assert sent_again > sent - BIG
    np.testing.assert_array_equal(again, rows)
    third, sent_third = load()  # the good bytes replaced the bad ones
    assert sent_third < sent - size + BIG
    np.testing.assert_array_equal(third, rows)


@pytest.mark.parametrize("left", [0, 4096, -1])
def test_truncated_file_is_not_served(left, only_ours, load, cached):
    rows, sent, file = cached
    os.truncate(file, left if left >= 0 else file.stat().st_size - 1)
    again, sent_again = load()
    assert sent_again > sent - BIG
    np.testing.assert_array_equal(again, rows)


def test_file_truncated_during_a_read(only_ours, load, cached):
    rows, _sent, file = cached
    content = file.read_bytes()
    caught = []

    def truncate_when_open(pid):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
            for link in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    opened = os.readlink(link) == str(file)
                except OSError:  # closed since it was listed
                    continue
                if opened:
                    os.truncate(file, 1 << 20)
                    caught.append(True)
                    return
            time.sleep(0.001)

    for _attempt in range(3):  # the read takes a tenth of a second, which a busy machine can sleep through
        file.write_bytes(content)
        again, _sent = load(truncate_when_open)
        np.testing.assert_array_equal(again, rows)
        if caught:
            break
    assert caught
