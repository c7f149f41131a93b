"""The command against servers that leave, hang or lie: one line and status 1, or it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ggml_rpc.server import Server
from ggml_rpc.spec.commands import Command
from tests.llm.models import MODELS, cached
from tests.llm.remote import drained, servers
from tests.support.tamper import Announce, Close, Hang, Lie, Reset, Spoiler, Tamper

N_TOKENS = 6


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Server]]:
    """Run two servers."""
    with servers(2) as running:
        yield running


def run(man: Tamper, other: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Continue a prompt on two servers, the first behind a man in the middle."""
    model = str(cached(MODELS["llama-bpe"], "Q8_0"))
    rpc = f"{man.endpoint},{other.endpoint}"
    options = ["--rpc", rpc, "-ts", "1,1", "-n", str(N_TOKENS), "-c", "256", "-t", "1", "--temp", "0", "--ignore-eos"]
    command = [sys.executable, "-m", "ggml_rpc.cli.run", "-m", model, "-p", "Once upon a time", *options, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


FAULTS: dict[str, tuple[Command, int, Callable[[], Spoiler]]] = {
    "it leaves at the beginning": (Command.HELLO, 1, Close),
    "it hangs at the beginning": (Command.HELLO, 1, Hang),
    "it announces too many devices": (Command.DEVICE_COUNT, 1, lambda: Lie(lambda _: b"\xff" * 4)),
    "it leaves while it is loaded": (Command.SET_TENSOR, 5, Reset),
    "it gives too little memory": (Command.ALLOC_BUFFER, 1, lambda: Lie(lambda x: x[:8] + bytes(8))),
    "it hangs while it computes": (Command.GET_TENSOR, 5, Hang),
    "it answers short": (Command.GET_TENSOR, 5, lambda: Announce(lambda n: n - 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_ends_with_one_line(fault: str, pair: list[Server]) -> None:
    command, nth, spoiler = FAULTS[fault]
    with Tamper(pair[0].endpoint, command, nth, spoiler()) as man:
        done = run(man, pair[1], "--timeout", "2")
        assert man.reached()
        assert man.drained()
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ggml-rpc run: ")]
    assert man.endpoint in line
    assert "Traceback" not in done.stderr
    assert all(map(drained, pair))


@pytest.mark.parametrize("at", [(Command.SET_TENSOR, 5), (Command.BUFFER_CLEAR, 1), (Command.GET_TENSOR, 3)])
@pytest.mark.parametrize("flag", ["--json", "--no-warmup"])
def test_it_goes_on(at: tuple[Command, int], flag: str, pair: list[Server]) -> None:
    with Tamper(pair[0].endpoint) as man:
        expected = run(man, pair[1], flag)
    with Tamper(pair[0].endpoint, *at, Close()) as man:
        done = run(man, pair[1], flag, "--on-loss", "redistribute")
        assert man.reached()
    assert done.returncode == 0, done.stderr
    assert man.endpoint in done.stderr
    if flag == "--json":
        events = [[json.loads(line) for line in out.splitlines()] for out in (expected.stdout, done.stdout)]
        texts = ["".join(e["text"] for e in some if e["event"] == "token") for some in events]
        assert texts[0] == texts[1] != ""
    else:
        assert done.stdout == expected.stdout
    assert all(map(drained, pair))
