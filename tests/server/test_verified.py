"""A file of the cache is hashed once, and again as soon as it may have changed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ggml_rpc.server import verified
from ggml_rpc.server.verified import Stamp, Verified, stamp_of
from ggml_rpc.wire._hash import fnv1a_64

LONG_AGO = time.time() - 3600


def write(folder: Path, data: bytes, age: float = 0) -> str:
    """Write a cache file, `age` seconds before the first of an hour ago; return its name."""
    name = f"{fnv1a_64(data):016x}"
    (folder / name).write_bytes(data)
    os.utime(folder / name, (LONG_AGO - age, LONG_AGO - age))
    return name


def stamp(folder: Path, name: str) -> Stamp:
    fd = os.open(folder / name, os.O_RDONLY)
    try:
        return stamp_of(fd)
    finally:
        os.close(fd)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust files at once: the time of a change of status cannot be set back."""
    monkeypatch.setattr(verified, "SETTLED_NS", -(10**12))


def wait_for_the_thread() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("verify"):
            thread.join(20)


@pytest.mark.usefixtures("settled")
def test_a_changed_file_is_not_held(tmp_path: Path) -> None:
    name = write(tmp_path, b"a" * 100)
    known = Verified(tmp_path)
    before = stamp(tmp_path, name)
    assert not known.holds(name, before)
    known.add(name, before)
    assert known.holds(name, before)
    (tmp_path / name).write_bytes(b"b" * 100)
    assert not known.holds(name, stamp(tmp_path, name))


def test_a_file_that_changed_just_now_is_not_trusted(tmp_path: Path) -> None:
    name = write(tmp_path, b"young")
    known = Verified(tmp_path)
    known.add(name, stamp(tmp_path, name))
    assert not known.holds(name, stamp(tmp_path, name))


@pytest.mark.usefixtures("settled")
def test_the_next_files_are_verified_ahead(tmp_path: Path) -> None:
    names = [write(tmp_path, bytes([i]) * (3 << 20), age=100 - i) for i in range(5)]
    damaged = tmp_path / names[2]
    damaged.write_bytes(b"x" * (3 << 20))
    os.utime(damaged, (LONG_AGO - 98, LONG_AGO - 98))
    known = Verified(tmp_path)
    known.look_ahead(names[0])
    wait_for_the_thread()
    held = [known.holds(name, stamp(tmp_path, name)) for name in names]
    assert held == [False, True, False, False, False]
    known.look_ahead(names[4])  # the last
    known.look_ahead("0" * 16)  # not there
    wait_for_the_thread()


def test_a_folder_that_was_moved_away_ends_nothing(tmp_path: Path) -> None:
    known = Verified(tmp_path / "gone")
    known.look_ahead("0" * 16)
    wait_for_the_thread()
    assert not known.holds("0" * 16, Stamp(1, 2, 3, 4, 5))


def test_written_files_are_verified_when_they_have_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "SETTLED_NS", 50_000_000)
    names = []
    known = Verified(tmp_path)
    for i in range(3):
        data = bytes([i]) * 1000
        names.append(f"{fnv1a_64(data):016x}")
        (tmp_path / names[i]).write_bytes(data if i != 1 else b"damaged")
        known.written(names[i])
    wait_for_the_thread()
    assert [known.holds(name, stamp(tmp_path, name)) for name in names] == [True, False, True]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told what will be read")
@pytest.mark.usefixtures("settled")
def test_the_next_verified_files_are_asked_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [write(tmp_path, bytes([i]) * 100, age=100 - i) for i in range(4)]
    known = Verified(tmp_path)
    for name in names:
        known.add(name, stamp(tmp_path, name))
    told: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *_: told.append(os.fstat(fd).st_ino))
    known.look_ahead(names[0])
    assert told == [(tmp_path / name).stat().st_ino for name in names[1 : 1 + verified.AHEAD]]
    os.unlink(tmp_path / names[2])
    known.look_ahead(names[1])  # what is gone is found out when it is asked for


def test_no_thread_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is verified ahead; the session that asked goes on, and the next one has another try."""
    names = [write(tmp_path, bytes([i]) * 100, age=100 - i) for i in range(3)]
    known = Verified(tmp_path)

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        known.look_ahead(names[0])
        known.written(names[0])
    begun: list[str] = []

    def note(self: threading.Thread) -> None:
        begun.append(self.name)

    monkeypatch.setattr(threading.Thread, "start", note)
    known.look_ahead(names[0])
    known.written(names[0])
    assert begun == ["verify", "verify-written"]
