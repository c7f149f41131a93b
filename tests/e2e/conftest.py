"""Stock peers, a real model and running servers for the end-to-end tests.

Two variables steer these tests: ``GGML_RPC_E2E_SERVER=stock`` puts stock's own server in the place of ours, which
checks the tests themselves; ``GGML_RPC_REQUIRE_PEERS=1`` makes a missing peer a failure instead of a skip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggml_rpc.peers import Peer, PeerError, prepare_model, prepare_peer
from ggml_rpc.peers.process import PATIENT, ServerProcess, own_server_command

CONTINUATION = 64
PROMPTS = (1, 7, 64, 300)
CLIENT_TIMEOUT = 240.0

ServerCommand = Callable[[str], list[str]]
Forced = tuple[list[int], list[int]]  # token ids, sizes of the batches to feed them in


def need(what: str, prepare: Callable[[], Any]) -> Any:
    """Return what `prepare` returns; skip, or fail where peers are required, if it cannot be had here."""
    try:
        return prepare()
    except PeerError as error:
        if os.environ.get("GGML_RPC_REQUIRE_PEERS") == "1":
            pytest.fail(f"{what}: {error}", pytrace=False)
        pytest.skip(f"{what}: {error}")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Return the path of Gemma 3 270M."""
    path: Path = need("model", prepare_model)
    return path


@pytest.fixture(scope="session")
def peer() -> Callable[[str], Peer]:
    """Return a function that gives the stock peer of a protocol version."""
    return lambda protocol: need(f"stock peer {protocol}", lambda: prepare_peer(protocol))


@pytest.fixture(scope="session")
def server_is_stock() -> bool:
    """Tell whether stock's own server stands in for ours."""
    return os.environ.get("GGML_RPC_E2E_SERVER") == "stock"


@pytest.fixture(scope="session")
def server_command(server_is_stock: bool, peer: Callable[[str], Peer]) -> ServerCommand:
    """Return a function that gives the argv prefix of a server that speaks a protocol version."""
    if server_is_stock:
        return lambda protocol: peer(protocol).driver_command(["serve"])
    return lambda protocol: [*own_server_command(), "--proto", protocol]


@pytest.fixture
def start_server(server_command: ServerCommand) -> Iterator[Callable[..., ServerProcess]]:
    """Return a function that starts a server; all of them end with the test."""
    started: list[ServerProcess] = []

    def start(protocol: str, *arguments: str, **environment: str) -> ServerProcess:
        server = ServerProcess(
            server_command(protocol), ["-t", "2", *arguments], environment={**PATIENT, **environment}
        )
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


class Client:
    """Run the stock client of one protocol version, a process a call."""

    def __init__(self, peer: Peer, model: Path, folder: Path) -> None:
        self._peer = peer
        self._model = model
        self._folder = folder
        self._calls = 0

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start the client and return its process; standard output carries JSON lines."""
        command = self._peer.driver_command([name, "--model", str(self._model), *arguments])
        return subprocess.Popen(
            command,
            env={**os.environ, **PATIENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_logits(
        self, sequences: Sequence[Forced], servers: Sequence[str], *arguments: str
    ) -> tuple[subprocess.Popen[str], list[Path]]:
        """Start a run over token sequences with given batch sizes; return the process and the files it will write."""
        self._calls += 1
        outs = [self._folder / f"logits-{self._calls}-{i}.npy" for i in range(len(sequences))]
        jobs = [
            {"tokens": tokens, "batches": batches, "out": str(out)}
            for (tokens, batches), out in zip(sequences, outs, strict=True)
        ]
        listing = self._folder / f"jobs-{self._calls}.json"
        listing.write_text(json.dumps(jobs))
        rpc = [word for server in servers for word in ("--rpc", server)]
        return self.start("logits", "--jobs", str(listing), *rpc, *arguments), outs

    def logits(
        self, sequences: Sequence[Forced], servers: Sequence[str], *arguments: str
    ) -> tuple[list[NDArray[np.float32]], dict[str, list[int]]]:
        """Run token sequences and return the logits of each batch's last token, and the layers of each device."""
        process, outs = self.start_logits(sequences, servers, *arguments)
        events = finish(process)
        layers = next(event["layers"] for event in events if event["event"] == "loaded")
        return [take(out) for out in outs], layers


def take(path: Path) -> NDArray[np.float32]:
    """Map an array and delete its name: the file, often 70 MB, goes with the mapping."""
    array: NDArray[np.float32] = np.load(path, mmap_mode="r")
    path.unlink()
    return array


def finish(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Wait for a client, fail the test if it failed, and return the events it printed."""
    try:
        out, log = process.communicate(timeout=CLIENT_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, log = process.communicate()
    assert process.returncode == 0, f"the stock client ended with {process.returncode}:\n{log[-3000:]}"
    return [json.loads(line) for line in out.splitlines()]


def make_gguf(*arguments: str | Path) -> None:
    """Run the model writer of the benchmarks."""
    script = Path(__file__).parents[2] / "bench" / "make_gguf.py"
    subprocess.run([sys.executable, script, *arguments], check=True)


@pytest.fixture(scope="session")
def plain_model_path(model_path: Path) -> Path:
    """Return Gemma 3 270M with F16 weights, written once into the cache."""
    path = model_path.with_name("gemma-3-270m-f16.gguf")
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            make_gguf("f16", model_path, Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    return path


@pytest.fixture(scope="session")
def client(
    peer: Callable[[str], Peer], model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Client]:
    """Return a function that gives the stock client of a protocol version, for Gemma or another model."""

    def make(protocol: str, model: Path = model_path) -> Client:
        return Client(peer(protocol), model, tmp_path_factory.mktemp("client"))

    return make


@pytest.fixture(scope="session")
def text_tokens(client: Callable[..., Client]) -> list[int]:
    """Return the tokens of a text of 530 tokens."""
    process = client("8.0").start("tokenize", "--text", str(Path(__file__).parent / "text.txt"))
    tokens: list[int] = finish(process)[0]["ids"]
    assert len(tokens) >= max(PROMPTS) + CONTINUATION
    return tokens


@pytest.fixture(scope="session")
def sequences(text_tokens: list[int]) -> dict[int, Forced]:
    """Return, for each length of prompt, its tokens with the 64 that follow, and the batches to feed them in."""
    return {length: forced(text_tokens, length) for length in PROMPTS}


def forced(tokens: list[int], length: int) -> Forced:
    """Return a prompt of `length` tokens in one batch, and the next 64 one at a time."""
    return tokens[: length + CONTINUATION], [length] + [1] * CONTINUATION


@pytest.fixture(scope="session")
def reference(
    client: Callable[..., Client], sequences: dict[int, Forced]
) -> Callable[..., dict[int, NDArray[np.float32]]]:
    """Return a function that gives the logits of the same client on its local CPU, computed once for each setting."""
    known: dict[tuple[str, ...], dict[int, NDArray[np.float32]]] = {}

    def local(protocol: str, *arguments: str) -> dict[int, NDArray[np.float32]]:
        key = (protocol, *arguments)
        if key not in known:
            rows, _layers = client(protocol).logits(list(sequences.values()), [], *arguments)
            known[key] = dict(zip(sequences, rows, strict=True))
        return known[key]

    return local
