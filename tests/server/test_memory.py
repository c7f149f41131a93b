"""What a server holds beside its clients' buffers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
# Peak beside the buffers that clients hold, whatever the size of a tensor.
BOUND = 32 * MIB

SCRIPT = """
import resource, sys, threading
from ggml_rpc.server import Server
from ggml_rpc.spec.dialects import find
from tests.support.rawclient import RawClient
from tests.support.wiretensor import tensor

# The client runs in a process of its own, so that only the server is measured.
server = Server(port=0, threads=2, cache_dir=None if len(sys.argv) < 2 else __import__("pathlib").Path(sys.argv[1]))
server.start()
def peak():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
before = peak()
print(server.endpoint, before, flush=True)
sys.stdin.readline()
print(peak(), flush=True)
server.close()
"""

CLIENT = """
import sys
from ggml_rpc.spec.dialects import find
from tests.support.rawclient import RawClient
from tests.support.wiretensor import tensor
size = int(sys.argv[2])
with RawClient(sys.argv[1], find("8.0")) as client:
    buffer = client.alloc(size)
    t = tensor("F32", (size // 4,), buffer=buffer.handle, data=buffer.base, name="weights")
    payload = bytes(range(256)) * (size // 256)
    client.set(t, payload, cache_flag=1)
    assert client.get(t) == payload
"""


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_peak_beside_a_large_tensor(tmp_path: Path, cached: bool) -> None:
    size = 256 * MIB
    root = Path(__file__).resolve().parents[2]
    extra = [str(tmp_path)] if cached else []
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *extra], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        endpoint, before = server.stdout.readline().split()
        subprocess.run([sys.executable, "-c", CLIENT, endpoint, str(size)], check=True, cwd=root, timeout=120)
        server.stdin.write("\n")
        server.stdin.flush()
        peak = int(server.stdout.readline())
    assert peak - int(before) >= size // 2, "the measurement saw nothing"
    assert peak - int(before) <= size + BOUND
    if cached:
        assert [p.stat().st_size for p in tmp_path.iterdir()] == [size]
