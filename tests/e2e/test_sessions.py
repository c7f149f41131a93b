"""Several clients at once, a client that dies, and the demonstration."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess

import pytest

from ggml_rpc.peers.process import module_command, wait_until_below

from .compare import assert_close
from .conftest import finish, take

pytestmark = pytest.mark.peer

SLACK = 32 << 20


def test_two_clients_at_once(start_server, client, sequences, reference):
    server = start_server("8.0")
    lengths = (64, 300)
    running = [
        client("8.0").start_logits([sequences[length]], [server.endpoint], "--flash", "on") for length in lengths
    ]
    expected = reference("8.0", "--flash", "on")
    for length, (process, outs) in zip(lengths, running, strict=True):
        finish(process)
        assert_close(take(outs[0]), expected[length], "gemma", f"prompt of {length} tokens")


def test_killed_client_frees_its_memory(start_server, client, sequences, model_path):
    server = start_server("8.0")
    client("8.0").logits([sequences[7]], [server.endpoint])  # allocate what stays for the life of the process
    before = wait_until_below(server.pid, 0, 1.0)
    process, _outs = client("8.0").start_logits([sequences[7]], [server.endpoint], "--hold", "120")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "holding":
            break
    held = server.rss_bytes()
    assert held - before > model_path.stat().st_size // 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert wait_until_below(server.pid, before + SLACK, 20.0) <= before + SLACK
    client("8.0").logits([sequences[7]], [server.endpoint])
    assert server.running()


@pytest.fixture
def demo_command(server_is_stock, server_command, model_path, peer):
    """Return the argv of the demonstration."""
    peer("8.0")
    stock = ["--server-command", shlex.join(server_command("8.0"))] if server_is_stock else []
    return [*module_command("ggml_rpc.cli.demo"), *stock]


def server_pids(text):
    """Return the ids of the servers that the demonstration names."""
    return [int(pid) for pid in re.findall(r"\(pid (\d+)\)", text)]


def test_demo_generates_text(demo_command):
    done = subprocess.run([*demo_command, "-n", "8"], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "generated 8 tokens" in done.stdout
    assert re.search(r"RPC0 on 127\.0\.0\.1:\d+: layers 0-\d+", done.stdout)
    assert re.search(r"RPC1 on 127\.0\.0\.1:\d+: layers \d+-17 and output", done.stdout)
    pids = server_pids(done.stdout)
    assert len(pids) == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_demo_ends_cleanly_when_stopped(number, status, demo_command):
    with subprocess.Popen(
        [*demo_command, "-n", "400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends its interrupt to the demonstration and all it started
    ) as process:
        assert process.stdout is not None
        seen = ""
        while "RPC1 on" not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        _out, log = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in log
    assert len(server_pids(seen)) == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in server_pids(seen))
