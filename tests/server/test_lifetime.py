"""The server's beginning and end inside a program: from several threads, in signal handlers, in forked processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ggml_rpc.server import Server
from ggml_rpc.server.cache import TensorCache
from ggml_rpc.spec.dialects import find
from tests.support.rawclient import RawClient

SECONDS = 20

# Closes the server by a signal that comes while the main thread holds the lock of the condition that it waits on.
HANDLER = """
import signal, sys, threading
from ggml_rpc.server import Server

server = Server(devices="CPU", port=0, threads=1)
signal.signal(signal.SIGUSR1, lambda *_: server.close())
server.start()

def trace(frame, event, arg):
    here = frame.f_code
    if here.co_filename == threading.__file__ and here.co_name == "wait":
        if isinstance(frame.f_locals["self"], threading.Condition):
            sys.settrace(None)
            signal.raise_signal(signal.SIGUSR1)
    return None

sys.settrace(trace)
server.serve_forever()
print("closed", server.n_connections)
"""


@pytest.fixture
def server() -> Server:
    """Return a server that is not started."""
    return Server(devices="CPU", port=0, threads=1)


def test_a_thread_closes_what_the_main_thread_serves(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Both close it then: the one who waited does so as soon as it is woken."""
    server.start()
    begun, going = threading.Event(), threading.Event()
    close = Server._close_listeners

    def slowly(this: Server) -> None:
        begun.set()
        close(this)
        assert going.wait(SECONDS)

    monkeypatch.setattr(Server, "_close_listeners", slowly)
    errors: list[BaseException] = []

    def closing() -> None:
        try:
            server.close()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=closing) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(SECONDS)
    going.set()
    server.serve_forever()
    server.close()
    for thread in threads:
        thread.join(SECONDS)
    assert not errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as POSIX has them")
def test_a_signal_handler_may_close_it_at_any_moment() -> None:
    done = subprocess.run([sys.executable, "-c", HANDLER], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("closed 0\n", 0), done.stderr


def test_closed_is_closed(server: Server) -> None:
    server.close()
    server.close()
    with pytest.raises(RuntimeError, match="was closed"):
        server.start()


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            server.start()
    assert server.endpoints == []
    server.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_leaves_it_alone(server: Server) -> None:
    with server:
        with RawClient(server.endpoint, find("8.0")) as client:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    server.close()
                    try:
                        server.start()
                    except RuntimeError:
                        status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            assert client.device_count() == 1
            begin = time.process_time()
            time.sleep(0.3)
            assert time.process_time() - begin < 0.1, "the thread that accepts clients spins"
        with RawClient(server.endpoint, find("8.0")) as other:
            assert other.device_count() == 1


@pytest.mark.parametrize("name", ["hello_seconds", "stall_seconds", "graph_timeout"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), 1e300, 1e-9])
def test_times_that_are_none(name: str, value: float) -> None:
    """None of them would be noticed before the first client came."""
    given: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=name):
        Server(devices="CPU", port=0, threads=1, **given)


@pytest.mark.parametrize("port", [-1, 1 << 16])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(ValueError, match="port must be"):
        Server(devices="CPU", port=port, threads=1)


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_a_text_that_can_be_no_host(host: str) -> None:
    with pytest.raises(OSError, match=r"cannot listen on '.*': it can be no host's name"):
        Server(devices="CPU", host=host, port=0, threads=1).start()


def _gone(path: Path) -> None:
    path.rmdir()
    path.write_bytes(b"")


def _looped(path: Path) -> None:
    path.rmdir()
    path.symlink_to(path)


class _Stored:
    """What a cache asks of a session."""

    region_bytes = 8

    def hash_region(self) -> int:
        return 1


@pytest.mark.parametrize("spoil", [_gone, _looped])
def test_a_cache_folder_that_became_something_else(
    spoil: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TensorCache(tmp_path / "rpc")
    spoil(tmp_path / "rpc")
    cache.store(_Stored())  # type: ignore[arg-type]
    assert "not cached" in caplog.text
    assert any(os.strerror(number) in caplog.text for number in (errno.ENOTDIR, errno.ELOOP))
