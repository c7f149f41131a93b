"""Clients of older llama.cpp and of ik_llama.cpp, built from source: only ``make interop`` collects these tests.

They take minutes, and the libraries of a version five to fifteen to build.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggml_rpc.peers.process import ServerProcess, own_server_command
from ggml_rpc.peers.source import find_source_peer
from tests.e2e.conftest import make_gguf, model_path, plain_model_path

__all__ = ["model_path", "plain_model_path"]

collect_ignore_glob = [] if os.environ.get("GGML_RPC_INTEROP") == "1" else ["test_*.py"]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the client program of a protocol, compiled at first use."""
    known: dict[str, Path] = {}

    def build(protocol: str) -> Path:
        if protocol not in known:
            peer = find_source_peer(protocol)
            if peer is None:
                pytest.skip(f"{protocol} is not built: make interop PROTOCOLS={protocol}")
            target = tmp_path_factory.mktemp("client") / "client"
            peer.compile(Path(__file__).with_name("client.cpp"), target)
            known[protocol] = target
        return known[protocol]

    return build


@pytest.fixture(scope="session")
def models(model_path: Path, plain_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return models by the name of their bound: Gemma 3 270M, itself and with F16 weights, and two random llamas."""
    folder = tmp_path_factory.mktemp("models")
    found = {"gemma": model_path, "gemma-f16": plain_model_path}
    for bound, kind in (("float", "F16"), ("quantised", "Q4_0")):
        found[bound] = folder / f"{kind}.gguf"
        make_gguf("random", found[bound], "tiny", kind)
    return found


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Return a function that starts our server with a list of protocols; all of them end with the test."""
    started: list[ServerProcess] = []

    def start(protocols: str, *arguments: str) -> ServerProcess:
        # The log then has a line a command, which shows where graphs ran.
        started.append(
            ServerProcess(
                own_server_command(),
                ["-t", "2", "--proto", protocols, *arguments],
                environment={"GGML_RPC_DEBUG": "1"},
            )
        )
        return started[-1]

    yield start
    for server in started:
        server.stop()
